"""The numbers of a document that the choice among duplicates needs, some 100 bytes of each, in a file a task."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from datatrove.utils.text import simplify_text

from ..document import Document, Image, Text, to_files
from ..web.draft import Picture
from ..web.stages import MANIFEST, size_in_tar
from ..web.text_quality import Words

DOCUMENT_DTYPE: Final = np.dtype(
    [
        ("number", "<i8"),  # in the source
        ("digest", "S32"),  # of all that the model reads
        ("near", "?"),  # whether it may be a near-duplicate
        ("short", "<u8"),  # hash of the words of a text too short for minhash, else 0
        ("images", "<i4"),
        ("characters", "<i8"),
        ("bytes", "<i8"),  # in a tar
        ("task", "<i4"),
    ]
)
PICTURE_DTYPE: Final = np.dtype([("document", "<i8"), ("position", "<i4"), ("sha256", "S32"), ("phash", "<u8")])


class Manifest:
    """The rows of a task's documents.

    Args:
        task: its number.
        ngram: words per shingle of minhash; shorter texts have none and are compared whole.
    """

    def __init__(self, task: int, ngram: int) -> None:
        self.task, self.ngram = task, ngram
        self.documents: list[tuple[Any, ...]] = []
        self.pictures: list[tuple[Any, ...]] = []

    def add(self, number: int, document: Document, pictures: list[Picture]) -> bool:
        """Take in a document; whether it may be a near-duplicate."""
        near, row = may_be_near(document), len(self.documents)
        short = short_hash(document.text, self.ngram) if near else 0
        size = size_in_tar(to_files(replace(document, key="key")).values())
        numbers = (len(pictures), len(document.text), size, self.task)
        self.documents.append((number, content_digest(document), near, short, *numbers))
        if near:
            rows = enumerate(pictures)
            self.pictures += [(row, position, shown.sha256.encode(), shown.phash) for position, shown in rows]
        return near

    def write(self, folder: Path) -> None:
        """Write the rows into a task's folder."""
        documents, pictures = np.array(self.documents, DOCUMENT_DTYPE), np.array(self.pictures, PICTURE_DTYPE)
        np.savez(folder / MANIFEST, documents=documents, pictures=pictures)


def may_be_near(document: Document) -> bool:
    """Whether a document is text and pictures without questions, boxes and other encoders' inputs.

    Two questions about a picture differ in a word, and so do their answers: of such documents only exact copies go.
    """
    return all(
        isinstance(segment, Image) or (isinstance(segment, Text) and segment.supervised and segment.boxes is None)
        for segment in document.segments
    )


def content_digest(document: Document) -> bytes:
    """32 hexadecimal digits of a hash of all that a model reads of a document: neither of its key nor of ``meta``."""
    files = to_files(Document("key", document.segments))
    parts = (name.encode() + hashlib.sha256(files[name]).digest() for name in sorted(files))
    return hashlib.sha256(b"".join(parts)).hexdigest()[:32].encode()


def short_hash(text: str, ngram: int) -> int:
    """A hash of the words of a text that has fewer than ``ngram``, as minhash reads them; 0 for a longer text."""
    if len(text.split()) > 4 * ngram:
        return 0
    words = Words().word_tokenize(simplify_text(text))
    if len(words) >= ngram or (text.strip() and not words):  # nothing but signs, of which words say nothing
        return 0
    return int.from_bytes(hashlib.sha256(" ".join(words).encode()).digest()[:8], "little") | 1
