"""A page on its way to a document: what the filters look at and shorten.

Its nodes are paragraphs, images that the page names, and, once their bytes are found and looked at, pictures.
"""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np

from kosmos.pictures import on_white

from .. import errors, extras
from ..document import Document, Image, Segment, Text
from ..errors import BadSample
from ..images import colour_range, open_image
from .page import ImageReference, Page

_KEY_DIGITS = 32
_EXCERPT = 320  # characters of text in a ledger example
_THUMBNAIL = 96  # pixels of its longer side


@dataclass(frozen=True)
class Picture:
    """An image whose bytes have been decoded once.

    Args:
        reference: where the page names it.
        data: the bytes as they came.
        width, height: pixels.
        colour_range: largest difference, over the three channels, between the lightest and the darkest pixel (0–255).
        sha256: of the bytes, 32 hexadecimal digits of it.
        phash: 64 bits of perceptual hash (imagehash.phash): near in Hamming distance when they look alike.
    """

    reference: ImageReference
    data: bytes
    width: int
    height: int
    colour_range: int
    sha256: str
    phash: int

    @property
    def aspect_ratio(self) -> float:
        """Longer side ÷ shorter side."""
        return max(self.width, self.height) / max(1, min(self.width, self.height))


@dataclass
class Draft:
    """A page with its text and images in reading order.

    Args:
        url: its address.
        title: as in the page.
        nodes: paragraphs, images not looked at yet, and pictures.
    """

    url: str
    title: str
    nodes: list[str | ImageReference | Picture] = field(default_factory=list)

    @classmethod
    def of(cls, page: Page) -> Draft:
        nodes = [
            clean(node) if isinstance(node, str) else replace(node, url=clean(node.url), alt=clean(node.alt))
            for node in page.nodes
        ]
        return cls(clean(page.url), clean(page.title), [node for node in nodes if node])

    @property
    def paragraphs(self) -> list[str]:
        return [node for node in self.nodes if isinstance(node, str)]

    @property
    def images(self) -> list[ImageReference | Picture]:
        return [node for node in self.nodes if not isinstance(node, str)]

    @property
    def pictures(self) -> list[Picture]:
        return [node for node in self.nodes if isinstance(node, Picture)]

    @property
    def text(self) -> str:
        """Its paragraphs, a line each."""
        return "\n".join(self.paragraphs)

    def example(self) -> dict[str, Any]:
        """What a ledger keeps of a dropped page."""
        return page_example(self.url, self.title, self.text)

    def document(self) -> Document:
        """The document: a text segment per run of paragraphs, pictures between them; the key is :func:`page_key`."""
        segments: list[Segment] = []
        for is_text, run in groupby(self.nodes, lambda node: isinstance(node, str)):
            if is_text:
                segments.append(Text("\n".join(str(node) for node in run)))
            else:
                segments += [Image(node.data) for node in run if isinstance(node, Picture)]
        images = [{"url": picture.reference.url, "alt": picture.reference.alt} for picture in self.pictures]
        return Document(page_key(self.url), segments, {"url": self.url, "title": self.title, "images": images})


def page_key(url: str) -> str:
    """A document's key: 32 hexadecimal digits of the sha256 of the page's address in canonical form.

    Canonical means without fragment and with sorted query (w3lib), so that two spellings of one address are one page.
    """
    with extras.hint():
        from w3lib.url import canonicalize_url
    try:
        url = canonicalize_url(url)
    except ValueError:  # hosts, ports and letters that no address can have; it is then taken as it is
        url = clean(url)
    return hashlib.sha256(url.encode()).hexdigest()[:_KEY_DIGITS]


def look_at(reference: ImageReference, data: bytes) -> Picture:
    """Decode an image once and note all that the filters ask of it.

    Raises:
        BadSample: as for :func:`kosmos_data.images.open_image`.
    """
    with extras.hint():
        import imagehash
    try:
        opened = open_image(data)
        rgb = on_white(opened)
        spread = colour_range(rgb)
        bits = imagehash.phash(rgb).hash.ravel()
        phash = int.from_bytes(np.packbits(bits).tobytes(), "big")
    except (BadSample, MemoryError):
        raise
    except Exception as error:  # conversion of hostile palettes and profiles raises whatever it likes
        raise BadSample(errors.IMAGE_BROKEN, f"{type(error).__name__}: {error}") from error
    digest = hashlib.sha256(data).hexdigest()[:32]
    return Picture(reference, data, *opened.size, spread, digest, phash)


def page_example(url: str, title: str, text: str, detail: str = "") -> dict[str, Any]:
    """What a ledger keeps of a dropped page."""
    excerpt = text if len(text) <= _EXCERPT else text[:_EXCERPT] + " …"
    return {"url": url, "title": title, "text": excerpt} | ({"detail": detail} if detail else {})


def image_example(url: str, page: str, picture: Picture | None, detail: str = "") -> dict[str, Any]:
    """What a ledger keeps of a dropped image: its address, its page, and how it looks."""
    example: dict[str, Any] = {"url": url[:1000], "page": page}
    if picture is not None:
        example["size"] = [picture.width, picture.height]
        example["thumbnail"] = "data:image/jpeg;base64," + base64.b64encode(thumbnail(picture.data)).decode()
    return example | ({"detail": detail} if detail else {})


def thumbnail(data: bytes) -> bytes:
    """JPEG of at most 96 pixels a side of an image that :func:`look_at` could decode."""
    small = on_white(open_image(data))
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=70)
    return buffer.getvalue()


def clean(text: str) -> str:
    """Without lone surrogates, which no file of a shard could hold."""
    return text if text.isascii() else text.encode("utf-8", "ignore").decode()
