"""Plain text: files of one's own, and JSON lines or parquet with a ``text`` field, as corpora on the hub have it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import errors
from ..document import Document, Text
from ..errors import BadSample, Tally
from ._files import LINES, files, records

_PLAIN = "*.txt"
_LARGEST_FILE = 64 << 20  # bytes; a document is a book at most


def text(source: Path, images: Path, tally: Tally, field: str = "text") -> Iterator[Document]:
    """``{"text": "…"}`` per line or row, whose other fields become ``meta``; each ``.txt`` is one document.

    Text files are read in subfolders too.
    """

    def document(key: str, record: dict[str, Any]) -> Iterator[Document]:
        body = record.pop(field, None)
        if body is None:
            there = ", ".join(map(str, list(record)[:8])) or "none"
            raise BadSample(errors.EMPTY, f"{key} has no field {field!r}, but {there}: --field NAME takes another")
        if not isinstance(body, str) or not body.strip():
            raise BadSample(errors.EMPTY, key)
        meta = {name: value for name, value in record.items() if isinstance(value, str | int | float | bool)}
        yield Document(key, [Text(body)], meta)

    plain = _text_files(source)
    for path in plain:
        yield from tally.usable(str(path), _whole, source, path)
    if plain and (source.is_file() or not any(path for pattern in LINES for path in source.glob(pattern))):
        return
    files(source, _PLAIN, *LINES)  # where there is nothing, the error names what is read
    for key, record in records(source, tally):
        yield from tally.usable(key, document, key, record)


def _text_files(source: Path) -> list[Path]:
    """The ``.txt`` files that a source is or holds; hidden ones, as macOS leaves beside others, are nobody's data."""
    if source.is_file():
        return [source] if source.suffix.lower() == ".txt" else []
    found = (path for path in source.rglob("*") if path.suffix.lower() == ".txt" and path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(source).parts))


def _whole(source: Path, path: Path) -> Iterator[Document]:
    if path.stat().st_size > _LARGEST_FILE:
        raise BadSample(errors.TEXT_TOO_LARGE, f"{path.stat().st_size} bytes; a document has {_LARGEST_FILE} at most")
    try:
        body = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadSample(errors.ENCODING, str(error)) from error
    if not body.strip():
        raise BadSample(errors.EMPTY, "no text")
    name = path.relative_to(source) if source.is_dir() else Path(path.name)
    yield Document(name.with_suffix("").as_posix(), [Text(body)])
