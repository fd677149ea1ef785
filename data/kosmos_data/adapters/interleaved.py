"""Interleaved pages: OBELICS and MMC4 records with their downloaded pictures."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from .. import errors
from ..document import Document, Segment, Text
from ..web.page import url_name
from ._files import read_image, records


def obelics(source: Path, images: Path, skipped: Counter[str]) -> Iterator[Document]:
    """Records with parallel lists ``texts`` and ``images`` (URLs), of which one is null at each place.

    The pictures are those of ``images``, named by :func:`url_name`. One that is missing is counted and left out; the
    text around it stays.
    """
    for key, record in records(source, skipped):
        texts, urls = record.get("texts"), record.get("images")
        if not isinstance(texts, list) or not isinstance(urls, list) or len(texts) != len(urls):
            skipped[errors.JSON] += 1
            continue
        segments: list[Segment] = []
        for text, url in zip(texts, urls, strict=True):
            if isinstance(text, str) and text:
                segments.append(Text(text))
            elif isinstance(url, str) and url and (picture := read_image(images, url_name(url), skipped)) is not None:
                segments.append(picture)
        if not segments:
            skipped[errors.EMPTY] += 1
            continue
        yield Document(key, segments, _page(record.get("general_metadata")))


def mmc4(source: Path, images: Path, skipped: Counter[str]) -> Iterator[Document]:
    """Records with ``text_list`` and ``image_info``; a picture goes before the sentence that it is matched with."""
    for key, record in records(source, skipped):
        sentences, before = record.get("text_list"), defaultdict[int, list[str]](list)
        try:
            for info in record.get("image_info", []):
                before[info["matched_text_index"]].append(str(info["image_name"]))
        except (KeyError, TypeError):
            sentences = None
        if not sentences or not isinstance(sentences, list) or not all(isinstance(text, str) for text in sentences):
            skipped[errors.JSON] += 1
            continue
        segments: list[Segment] = []
        for number, sentence in enumerate(sentences):
            loaded = (read_image(images, name, skipped) for name in before[number])
            segments += [picture for picture in loaded if picture is not None]
            segments.append(Text(sentence))
        yield Document(key, segments, {"url": record["url"]} if "url" in record else {})


def _page(metadata: object) -> dict[str, str]:
    """The page's address out of OBELICS' ``general_metadata``, which is JSON in a string."""
    try:
        url = json.loads(metadata)["url"] if isinstance(metadata, str) else None
    except (ValueError, TypeError, KeyError):
        return {}
    return {"url": url} if isinstance(url, str) else {}
