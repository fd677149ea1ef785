"""Interleaved pages: OBELICS and MMC4 records with their downloaded pictures."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import errors
from ..document import Document, Image, Segment, Text, is_blank
from ..errors import BadSample, Tally
from ..web.page import url_name
from ._files import image, records


def obelics(source: Path, images: Path, tally: Tally) -> Iterator[Document]:
    """Records with parallel lists ``texts`` and ``images`` (URLs), of which one is null at each place.

    The pictures are those of ``images``, named by :func:`url_name`. One that is missing is counted and left out; the
    text around it stays.
    """

    def document(key: str, record: dict[str, Any]) -> Iterator[Document]:
        texts, urls = record.get("texts"), record.get("images")
        if not isinstance(texts, list) or not isinstance(urls, list) or len(texts) != len(urls):
            raise BadSample(errors.JSON, f"{key}: texts and images are not two lists of one length")
        segments: list[Segment] = []
        for text, url in zip(texts, urls, strict=True):
            if isinstance(text, str) and not is_blank(text):
                segments.append(Text(text))
            elif isinstance(url, str) and url:
                segments += _picture(images, url_name(url), key, tally)
        if not segments:
            raise BadSample(errors.EMPTY, key)
        yield Document(key, segments, _page(record.get("general_metadata")))

    for key, record in records(source, tally):
        yield from tally.usable(key, document, key, record)


def mmc4(source: Path, images: Path, tally: Tally) -> Iterator[Document]:
    """Records with ``text_list`` and ``image_info``; a picture goes before the sentence that it is matched with."""

    def document(key: str, record: dict[str, Any]) -> Iterator[Document]:
        sentences, before = record.get("text_list"), defaultdict[int, list[str]](list)
        try:
            for info in record.get("image_info") or []:
                before[info["matched_text_index"]].append(str(info["image_name"]))
        except (KeyError, TypeError) as error:
            raise BadSample(errors.JSON, f"{key}: image_info: {error}") from error
        if not isinstance(sentences, list) or not all(isinstance(text, str) for text in sentences):
            raise BadSample(errors.JSON, f"{key}: text_list is no list of texts")
        segments: list[Segment] = []
        for number, sentence in enumerate(sentences):
            segments += [picture for name in before[number] for picture in _picture(images, name, key, tally)]
            segments += [] if is_blank(sentence) else [Text(sentence)]
        if not segments:
            raise BadSample(errors.EMPTY, key)
        url = record.get("url")
        yield Document(key, segments, {"url": url} if isinstance(url, str) else {})

    for key, record in records(source, tally):
        yield from tally.usable(key, document, key, record)


def _picture(folder: Path, name: str, key: str, tally: Tally) -> list[Image]:
    """The picture of a page in a list, which is empty, counted, where it cannot be had."""
    try:
        return [image(folder, name)]
    except BadSample as error:
        tally.count(error.reason, f"{key}: {error.detail}", record=False)
        return []


def _page(metadata: object) -> dict[str, str]:
    """The page's address out of OBELICS' ``general_metadata``, which is JSON in a string; nothing if it tells none."""
    try:
        url = json.loads(metadata)["url"] if isinstance(metadata, str) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return {}
    return {"url": url} if isinstance(url, str) else {}
