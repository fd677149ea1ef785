"""Plain text: files of one's own, and JSON lines or parquet with a ``text`` field, as corpora on the hub have it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import errors
from ..document import Document, Text, is_blank
from ..errors import BadSample, Tally
from ._files import LINES, files, matching, read_text, records, text_files

_PLAIN = "*.txt"


def text(source: Path, images: Path, tally: Tally, field: str = "text") -> Iterator[Document]:
    """``{"text": "…"}`` per line or row; each ``.txt`` is one document.

    Other fields, and those of a ``meta`` among them, become ``meta``. Text files are read in subfolders too.
    """

    def document(key: str, record: dict[str, Any]) -> Iterator[Document]:
        body = record.pop(field, None)
        if body is None:
            there = ", ".join(map(str, list(record)[:8])) or "none"
            raise BadSample(errors.EMPTY, f"{key} has no field {field!r}, but {there}: --field NAME takes another")
        if not isinstance(body, str) or is_blank(body):
            raise BadSample(errors.EMPTY, key)
        inner = record.get("meta")  # the Pile's: {"pile_set_name": "ArXiv"}
        fields = {**(inner if isinstance(inner, dict) else {}), **record}
        meta = {name: value for name, value in fields.items() if isinstance(value, str | int | float | bool)}
        yield Document(key, [Text(body)], meta)

    plain = None
    for plain in text_files(source, tally):
        yield from tally.usable(str(plain), _whole, source, plain)
    if plain and not (source.is_dir() and matching(source, *LINES)):  # a file holds none
        return
    files(source, _PLAIN, *LINES)  # where there is nothing, the error names what is read
    for key, record in records(source, tally):
        yield from tally.usable(key, document, key, record)


def _whole(source: Path, path: Path) -> Iterator[Document]:
    body = read_text(path)
    if is_blank(body):
        raise BadSample(errors.EMPTY, "no text")
    name = path.relative_to(source) if source.is_dir() else Path(path.name)
    yield Document(name.with_suffix("").as_posix(), [Text(body)])
