"""Which address an image really has: ``srcset``, ``<picture>``, and the attributes that lazy loaders use.

``src`` is what a browser of 1995 would show; on today's pages it is often a placeholder, and the picture is elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from urllib.parse import urldefrag, urljoin

from ... import extras
from ..page import ImageReference

Attributes = Mapping[str, str | None]

_LAZY_SETS = ("data-srcset", "data-lazy-srcset", "data-original-set")
_LAZY = ("data-src", "data-original", "data-lazy-src", "data-lazy", "data-original-src", "data-actualsrc", "data-url")
_TYPES = frozenset(("image/jpeg", "image/jpg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff"))
_LONGEST_URL = 2048
_MOST_CANDIDATES = 64
_ADDRESS = re.compile(r"[\s,]*(\S+)")
_DESCRIPTOR = re.compile(r"([0-9]{1,7}(?:\.[0-9]{0,4})?)([wx])")
_PIXELS = re.compile(r"\s*([0-9]{1,6})(?:\.[0-9]*)?\s*(?:px)?\s*$")
_STYLE_PIXELS = re.compile(
    r"(?:^|;)\s*(width|height)\s*:\s*([0-9]{1,6})(?:\.[0-9]*)?(?:px)?\s*(?:!important\s*)?(?=;|$)"
)


def reference(image: Attributes, sources: Iterable[Attributes], base: str) -> ImageReference | None:
    """What an ``<img>`` shows, or None if that is nothing: a tracking pixel, a placeholder, no address.

    Of all candidates of ``srcset`` the largest is taken; a lazy loader's attributes go before ``srcset`` and ``src``.

    Args:
        image: attributes of the ``<img>``.
        sources: attributes of the ``<source>`` elements of its ``<picture>``.
        base: address that relative ones are relative to.
    """
    width, height = _declared(image, "width"), _declared(image, "height")
    if min(width if width is not None else 2, height if height is not None else 2) <= 1:
        return None
    readable = [source for source in sources if (source.get("type") or "image/jpeg").strip().lower() in _TYPES]
    everything = [image, *readable]
    groups = (
        [attributes.get(name) for attributes in everything for name in _LAZY_SETS],
        [attributes.get("srcset") for attributes in everything],
    )
    for group in groups:
        for candidate in largest_first(srcset for srcset in group if srcset):
            if url := absolute(candidate, base):
                return ImageReference(url, _text(image.get("alt")), width, height)
    for name in (*_LAZY, "src"):
        value = image.get(name)
        if value and (url := absolute(value, base)):
            return ImageReference(url, _text(image.get("alt")), width, height)
    return None


def largest_first(srcsets: Iterable[str]) -> list[str]:
    """The addresses of all candidates, largest first: by width where one is given, else by pixel density."""
    found: list[tuple[float, float, str]] = []
    for srcset in srcsets:
        end = 0
        while len(found) < _MOST_CANDIDATES and (match := _ADDRESS.match(srcset, end)):
            url, end = match[1], match.end()
            sizes: dict[str, float] = {}
            if not url.endswith(","):  # then descriptors follow, up to the next comma
                start, end = end, _find(srcset, ",", end)
                sizes = {unit: float(number) for number, unit in _DESCRIPTOR.findall(srcset, start, end)}
            found.append((sizes.get("w", 0.0), sizes.get("x", 1.0), url.rstrip(",")))
    return [url for _, _, url in sorted(found, key=lambda candidate: candidate[:2], reverse=True)]


def _find(text: str, what: str, start: int) -> int:
    at = text.find(what, start)
    return len(text) if at < 0 else at


def absolute(url: str, base: str) -> str | None:
    """The address as it is fetched: joined to ``base``, escaped, without fragment; None unless it is http or https."""
    url = url.strip()
    if not url or len(url) > _LONGEST_URL or url.startswith(("data:", "{", "<", "#", "javascript:", "about:")):
        return None
    return _absolute(url, base)


@lru_cache(maxsize=1024)
def _absolute(url: str, base: str) -> str | None:
    with extras.hint():
        from w3lib.url import safe_url_string
    try:
        joined = safe_url_string(urldefrag(urljoin(base, url)).url)
    except ValueError:  # malformed hosts and ports; UnicodeError too
        return None
    return joined if joined.startswith(("http://", "https://")) else None


def _declared(image: Attributes, side: str) -> int | None:
    value = image.get(side)
    if value and (match := _PIXELS.match(value)):
        return int(match[1])
    for name, pixels in _STYLE_PIXELS.findall(image.get("style") or ""):
        if name == side:
            return int(pixels)
    return None


def _text(value: str | None) -> str:
    return " ".join((value or "").split())
