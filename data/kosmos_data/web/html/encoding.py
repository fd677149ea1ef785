"""Bytes of a page to text, in the order that browsers use: byte order mark, HTTP header, ``<meta>``, then a guess."""

from __future__ import annotations

import re

from ... import errors, extras
from ...errors import BadSample
from .encoding_labels import CODECS

_DECLARED = re.compile(
    rb"(?:<meta[^>]{0,1000}?charset|<\?xml[^>]{0,200}?encoding)\s*=\s*[\"']?\s*([^\s\"'/>;]{1,40})", re.IGNORECASE
)
_TAG = re.compile(r"<[a-zA-Z!]")
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")
_LOOKED_AT = 2000  # characters
_HEAD = 4096  # bytes in which a page says its encoding


def decode(html: bytes, declared: str | None = None) -> str:
    """The text of ``html``; what cannot be decoded becomes U+FFFD.

    Args:
        html: body of the response.
        declared: charset of the HTTP header, if any.

    Raises:
        BadSample: it is not HTML: binary, or without a single tag.
    """
    encoding = _encoding(html, declared)
    if encoding == "replacement":
        raise BadSample(errors.NOT_HTML, "an encoding that the WHATWG standard does not decode")
    text = html.decode(encoding, "replace").removeprefix("\ufeff")
    if len(_CONTROLS.findall(text, 0, _LOOKED_AT)) > min(len(text), _LOOKED_AT) / 100:
        raise BadSample(errors.NOT_HTML, "control characters")
    if not _TAG.search(text):
        raise BadSample(errors.NOT_HTML, "no tag")
    return text


def _encoding(html: bytes, declared: str | None) -> str:
    with extras.hint():
        from w3lib.encoding import read_bom
    by_mark = read_bom(html)[0]
    if by_mark in ("utf-8", "utf-16-le", "utf-16-be"):
        return by_mark
    in_page = _DECLARED.search(html, 0, _HEAD)
    if in_header := CODECS.get((declared or "").strip(" \t\n\f\r\"'").lower()):
        return in_header
    if in_page and (name := CODECS.get(in_page.group(1).decode("ascii", "replace").lower())):
        # A page whose <meta> could be read byte by byte is not UTF-16, whatever it says (WHATWG, section 13.2.3.2).
        return "utf-8" if name.startswith("utf-16") else name
    try:
        html.decode("utf-8")
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8"
