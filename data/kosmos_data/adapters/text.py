"""Plain text: JSON lines or parquet with a ``text`` field, as most corpora on the Hugging Face hub are published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from .. import errors
from ..document import Document, Text
from ._files import records


def text(source: Path, images: Path, skipped: Counter[str]) -> Iterator[Document]:
    """``{"text": "…"}`` per line or row; other fields become ``meta``."""
    for key, record in records(source, skipped):
        body = record.pop("text", None)
        if not isinstance(body, str) or not body.strip():
            skipped[errors.EMPTY] += 1
            continue
        meta = {name: value for name, value in record.items() if isinstance(value, str | int | float | bool)}
        yield Document(key, [Text(body)], meta)
