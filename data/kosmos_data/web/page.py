"""What extraction makes of one web page: text and images in reading order, before anything is filtered or fetched."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ImageReference:
    """An image where it stands in a page.

    Args:
        url: absolute address, with the largest candidate of a ``srcset`` or the real address of a lazy image.
        alt: alternative text, ``""`` when there is none.
        width: pixels as the HTML declares them, None when it does not.
        height: as ``width``.
    """

    url: str
    alt: str = ""
    width: int | None = None
    height: int | None = None


@dataclass
class Page:
    """One web page.

    Args:
        url: its address; also what the document's key is hashed from.
        title: text of ``<title>``.
        language: ``lang`` attribute of ``<html>``, ``""`` when absent; a claim, the filter detects the language itself.
        nodes: paragraphs (no newline inside but where the page has a line break) and images in document order;
            captions of figures are paragraphs behind their image.
    """

    url: str
    title: str = ""
    language: str = ""
    nodes: list[str | ImageReference] = field(default_factory=list)


def url_name(url: str) -> str:
    """File name of a downloaded picture: 32 hexadecimal digits of the URL's sha256."""
    return hashlib.sha256(url.encode("utf-8", "replace")).hexdigest()[:32]
