"""Plain text: JSON lines or parquet with a ``text`` field, as most corpora on the Hugging Face hub are published."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import errors
from ..document import Document, Text
from ..errors import BadSample, Tally
from ._files import records


def text(source: Path, images: Path, tally: Tally, field: str = "text") -> Iterator[Document]:
    """``{"text": "…"}`` per line or row; other fields become ``meta``."""

    def document(key: str, record: dict[str, Any]) -> Iterator[Document]:
        body = record.pop(field, None)
        if body is None:
            there = ", ".join(map(str, list(record)[:8])) or "none"
            raise BadSample(errors.EMPTY, f"{key} has no field {field!r}, but {there}: --field NAME takes another")
        if not isinstance(body, str) or not body.strip():
            raise BadSample(errors.EMPTY, key)
        meta = {name: value for name, value in record.items() if isinstance(value, str | int | float | bool)}
        yield Document(key, [Text(body)], meta)

    for key, record in records(source, tally):
        yield from tally.usable(key, document, key, record)
