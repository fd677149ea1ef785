"""Bytes of a page to text, in the order that browsers use: byte order mark, HTTP header, ``<meta>``, then a guess."""

from __future__ import annotations

import codecs
import re

from ... import errors, extras
from ...errors import BadSample

# The encodings of the WHATWG standard by Python's names. A page may claim any codec that Python has, also ``hex``,
# ``zlib`` or ``idna``, which are not text encodings or take quadratic time.
_KNOWN = frozenset(
    codecs.lookup(name).name
    for name in (
        *("utf-8", "utf-16-le", "utf-16-be", "utf-16", "cp866", "koi8-r", "koi8-u", "mac-roman", "mac-cyrillic"),
        *(f"cp{number}" for number in (874, *range(1250, 1259))),
        *(f"iso8859-{part}" for part in (*range(2, 9), 10, 13, 14, 15, 16)),
        *("gb18030", "big5hkscs", "euc-jp", "iso2022-jp", "cp932", "cp949"),
    )
)
_TAG = re.compile(r"<[a-zA-Z!]")
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")
_LOOKED_AT = 2000  # characters


def decode(html: bytes, declared: str | None = None) -> str:
    """The text of ``html``; what cannot be decoded becomes U+FFFD.

    Args:
        html: body of the response.
        declared: charset of the HTTP header, if any.

    Raises:
        BadSample: it is not HTML: binary, or without a single tag.
    """
    text = html.decode(_encoding(html, declared), "replace").removeprefix("\ufeff")
    if len(_CONTROLS.findall(text, 0, _LOOKED_AT)) > min(len(text), _LOOKED_AT) / 100:
        raise BadSample(errors.NOT_HTML, "control characters")
    if not _TAG.search(text):
        raise BadSample(errors.NOT_HTML, "no tag")
    return text


def _encoding(html: bytes, declared: str | None) -> str:
    with extras.hint():
        from w3lib.encoding import html_body_declared_encoding, read_bom, resolve_encoding
    by_mark = read_bom(html)[0]
    in_header = resolve_encoding(declared) if declared and declared.isascii() else None
    for name in (by_mark, in_header, html_body_declared_encoding(html)):
        if name in _KNOWN:
            # A page whose <meta> could be read byte by byte is not UTF-16, whatever it says (WHATWG, section 13.2.3.2).
            return "utf-8" if name.startswith("utf-16") and name not in (by_mark, in_header) else name
    try:
        html.decode("utf-8")
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8"
