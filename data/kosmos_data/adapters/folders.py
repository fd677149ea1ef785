"""Pictures of one's own: a folder with captions beside them, a table of paths and captions, a folder per class."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from .. import errors
from ..document import PICTURES, Document, Text
from ..errors import BadSample, Tally
from ._files import caption, ending, image, matching, packed, read_lines, read_table, read_text, walk

_TABLES = ("metadata.jsonl", "metadata.csv", "metadata.tsv")
NAMES = ("file_name", "filepath", "filename", "image", "image_path", "path", "file")
_OTHERS = ("heic", "heif", "jxl", "svg", "psd", "ico", "tga", "dng", "cr2", "nef", "arw")  # pictures that are not read
_FOLDERS = 8  # whose names are kept: that of a picture and those around it
CAPTIONS = ("text", "title", "caption", "captions", "description", "label")


def folder(source: Path, images: Path, tally: Tally, field: str | None = None) -> Iterator[Document]:
    """Pictures with ``NAME.txt`` beside each, also in subfolders, or those of a ``metadata.jsonl``, ``.csv``, ``.tsv``.

    A picture that cannot be opened, or is without a caption, is counted with its path.
    """
    if not source.is_dir():
        raise ValueError(f"{source} is no folder; a table of paths and captions is read by: kosmos data import csv")
    tables = [path for name in _TABLES for path in matching(source, *packed(name))]
    if tables:
        yield from csv(tables[0], source, tally, field)
        return
    captions = lru_cache(_FOLDERS)(_captions)

    def document(path: Path) -> Iterator[Document]:
        text = captions(path.parent).get(path.stem)
        if text is None:
            raise BadSample(errors.NO_CAPTION, f"no {path.with_suffix('.txt').name} beside it")
        yield _pair(source, path, _read_caption(path.with_name(text)))

    for path in _pictures(source, tally):
        yield from tally.usable(str(path), document, path)


def csv(source: Path, images: Path, tally: Tally, field: str | None = None) -> Iterator[Document]:
    """A CSV or TSV file with a header (or JSON lines): a picture's path and caption in each row, as open_clip has it.

    The columns are the first of ``filepath``, ``file_name``, … and of ``title``, ``caption``, ``text``, … that the
    header has; ``--field`` names another for the captions. Paths begin at ``--images``, or the table's own folder.
    """
    if not source.is_file():
        raise ValueError(f"{source} is no table of paths and captions; a folder is read by: kosmos data import folder")
    rows: Iterator[tuple[int, dict[str, Any]]] = (
        read_lines(source, tally) if ending(source) in (".jsonl", ".ndjson") else read_table(source, tally)
    )

    def document(row: dict[str, Any]) -> Iterator[Document]:
        name, text = (
            _column(row, NAMES, "path of the picture"),
            _column(row, (field,) if field else CAPTIONS, "caption"),
        )
        yield _pair(images, images / row[name], caption(row[text]))

    for number, row in rows:
        yield from tally.usable(f"{source.name}, row {number + 1}", document, row)


def imagefolder(source: Path, images: Path, tally: Tally) -> Iterator[Document]:
    """A folder of pictures for each class, whose name is the caption (``_`` read as a space)."""
    if not source.is_dir():
        raise ValueError(f"{source} is no folder of folders of pictures")

    def document(path: Path) -> Iterator[Document]:
        classes = path.relative_to(source).parts
        if len(classes) < 2:
            raise BadSample(errors.NO_CAPTION, "it lies in no folder of a class")
        yield _pair(source, path, caption(classes[0].replace("_", " ")))

    for path in _pictures(source, tally):
        yield from tally.usable(str(path), document, path)


def _pictures(source: Path, tally: Tally) -> Iterator[Path]:
    """The picture files below a folder, by name; a link to a file that is gone is one that is missing.

    Those of formats that are not read are among them, so that they are counted and named.
    """
    for path in walk(source, tally):
        if path.suffix.lower().removeprefix(".") in (*PICTURES, *_OTHERS) and (path.is_file() or path.is_symlink()):
            yield path


def _captions(folder: Path) -> dict[str, str]:
    """The names of the text files in a folder, by what stands before their ending."""
    names = (Path(name) for name in sorted(os.listdir(folder)) if not name.startswith("."))
    return {name.stem: name.name for name in names if name.suffix.lower() == ".txt" and (folder / name).is_file()}


def _pair(root: Path, path: Path, text: str) -> Document:
    picture = image(root, str(path.relative_to(root) if path.is_relative_to(root) else path))
    key = path.relative_to(root).with_suffix("")
    return Document(key.as_posix(), [picture, Text(text)])


def _read_caption(path: Path) -> str:
    return caption(read_text(path))


def _column(row: dict[str, Any], names: tuple[str, ...], what: str) -> str:
    """The first of ``names`` among the row's fields."""
    by_name = {str(name).strip().lower(): name for name in row}
    for name in names:
        if name.lower() in by_name:
            return by_name[name.lower()]
    raise BadSample(errors.FIELDS, f"no {what}: none of {', '.join(names)}; it has {json.dumps(list(row))[:120]}")
