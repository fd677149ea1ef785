"""What the adapters share: JSON, lines of JSON, tables, and picture files that may be missing.

Bytes that are not UTF-8 become lone surrogates, so that they cost the record that holds them and no other:
:func:`kosmos_data.adapters.convert` counts what cannot be written.
"""

from __future__ import annotations

import csv
import itertools
import os
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TextIO
from unicodedata import normalize

from .. import errors, extras
from ..document import Image, is_blank
from ..errors import BadSample, Tally
from ..images import open_header
from ._json_list import entries, parse
from ._packed import beginning, first_lines, open_text, text_lines

LARGEST_TEXT = 64 << 20  # bytes of a text file: a book at most
_LARGEST_PICTURE = 256 << 20  # bytes of a picture file
_PACKINGS = (".gz", ".bz2", ".xz", ".zst", ".zip")


def packed(*patterns: str) -> tuple[str, ...]:
    """The patterns of files' names, and of the same files when they are packed."""
    return tuple(f"{pattern}{packing}" for pattern in patterns for packing in ("", *_PACKINGS))


LINES = (*packed("*.jsonl", "*.ndjson"), "*.parquet", "*.arrow")
_BEHIND = "\x1e\x1e"  # a row behind the last of a table, which an open quotation mark swallows with all before it
_LONGEST_ROW = 1 << 20  # characters; csv takes no field of more than 131,072
_ROWS = 64  # of a parquet file at a time: each may hold several pictures


def read_list(source: Path, tally: Tally, key: str | None = None) -> Iterator[Any]:
    """The records of a JSON file: a list, the list under ``key`` of an object, or, without ``key``, JSON lines.

    Raises:
        ValueError: it holds something else, or JSON that is malformed (where that is reached).
    """
    lines = _begins_like_lines(source)
    named = {".jsonl", ".ndjson"} & {suffix.lower() for suffix in source.suffixes}
    if key is None and (lines or named):
        yield from (record for _, record in read_lines(source, tally))
        return
    try:
        yield from entries(source, key)
    except ValueError as error:
        raise ValueError(f"{error}{'; it begins like JSON lines' if lines else ''}") from error


def begins_with_list(path: Path) -> bool:
    """Whether a JSON file holds a list."""
    return beginning(path).startswith("[")


def files(source: Path, *patterns: str) -> list[Path]:
    """``source`` itself, or the files in it that match; FileNotFoundError if there are none, with what there is."""
    if source.is_file():
        return [source]
    found = matching(source, *patterns)
    if not found:
        wanted = " or ".join(pattern for pattern in patterns if not pattern.endswith(_PACKINGS))
        raise FileNotFoundError(f"{source} holds no {wanted}{what_is_in(source)}")
    return found


def what_is_in(folder: Path) -> str:
    """Which files a folder holds, as the end of a sentence; empty where it holds none, or is no folder."""
    kinds = sorted({path.suffix for path in folder.glob("*") if path.is_file()})[:6]
    return f"; it holds files ending in {', '.join(map(repr, kinds))}" if kinds else ""


def matching(folder: Path, *patterns: str) -> list[Path]:
    """The files in a folder of names that match, sorted; hidden ones are passed over, and case makes no difference."""
    names = (path for path in folder.iterdir() if not path.name.startswith("."))
    found = (path for path in names if any(fnmatchcase(path.name.lower(), pattern) for pattern in patterns))
    return sorted(path for path in found if path.is_file())


def ending(path: Path) -> str:
    """What kind of file a name says, in lower case and without what it is packed with: ``.csv`` of ``A.CSV.gz``."""
    inner = path.with_suffix("") if path.suffix.lower() in _PACKINGS else path
    return inner.suffix.lower()


def records(source: Path, tally: Tally) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, record) of JSONL (plain, .gz, .zst or .zip), parquet and ``datasets``' arrow files.

    Broken lines are counted.
    """
    for path in files(source, *LINES):
        stem = key_of(path.name.split(".")[0])
        rows = _tables(path) if path.suffix.lower() in (".parquet", ".arrow") else read_lines(path, tally)
        for number, row in rows:
            yield f"{stem}-{number:08d}", row


def key_of(name: str) -> str:
    """A part of a document's key, in which dots would end it."""
    return re.sub(r"[^\w-]", "_", name)


def image(folder: Path, name: str) -> Image:
    """The bytes of a picture file below ``folder``.

    A record that names a file elsewhere (``../../private.png``) does not get it.

    Raises:
        BadSample: the file is missing, empty, larger than any picture, or none.
    """
    path = _find(folder, name)
    if path is None:
        raise BadSample(errors.IMAGE_MISSING, str(folder / name))
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= _LARGEST_PICTURE else b""
    except (PermissionError, FileNotFoundError) as error:  # or gone since it was listed
        raise BadSample(errors.IMAGE_MISSING, f"{path}: {error.strerror}") from error
    if size > _LARGEST_PICTURE:
        raise BadSample(errors.IMAGE_TOO_LARGE, f"{path} has {size} bytes")
    if not data:
        raise BadSample(errors.IMAGE_MISSING, f"{path} is empty")
    try:
        open_header(data)
    except BadSample as error:
        raise BadSample(error.reason, error.of(str(path))) from error
    return Image(data)


def _find(folder: Path, name: str) -> Path | None:
    """The file of a name below ``folder``.

    A table written on Windows has ``\\``, and macOS writes an é as two characters where others write one.
    """
    names = dict.fromkeys((name, name.replace("\\", "/")))
    forms = names if name.isascii() else [normalize(form, one) for one in names for form in ("NFC", "NFD")]
    for path in (folder / one for one in dict.fromkeys([*names, *forms])):
        inside = path.is_relative_to(folder) and ".." not in path.relative_to(folder).parts
        if inside and os.path.isfile(path):  # False for names that no file can have
            return path
    return None


def text_files(source: Path, tally: Tally) -> Iterator[Path]:
    """The ``.txt`` files that a source is or holds, in subfolders too; devices of such a name are nobody's data."""
    found = [source] if source.is_file() else walk(source, tally)
    return (path for path in found if path.suffix.lower() == ".txt" and path.is_file())


def walk(folder: Path, tally: Tally) -> Iterator[Path]:
    """All below a folder that is no folder, by name; no more is held than the names of one folder at each depth.

    Hidden files and folders, as macOS leaves beside others, are passed over, links to folders are not followed, and a
    folder that may not be read is counted.
    """
    left = [(folder, "", True)]
    while left:
        parent, name, is_folder = left.pop()
        path = parent / name
        if is_folder:
            left += ((path, *one) for one in reversed(_inside(path, tally)))
        elif not path.is_dir():
            yield path


def _inside(folder: Path, tally: Tally) -> list[tuple[str, bool]]:
    """Name of each thing in a folder, sorted, and whether it is a folder."""
    try:
        with os.scandir(folder) as inside:
            return sorted((one.name, one.is_dir(follow_symlinks=False)) for one in inside if one.name[0] != ".")
    except OSError as error:
        tally.count(errors.CLOSED, f"{folder}: {error.strerror}", record=False)
        return []


def read_text(path: Path) -> str:
    """The text of a file, without a byte order mark; BadSample where it is no UTF-8, or larger than a book."""
    try:
        if (size := path.stat().st_size) > LARGEST_TEXT:
            raise BadSample(errors.TEXT_TOO_LARGE, f"{path.name} has {size} bytes, {LARGEST_TEXT} at most")
        return path.read_bytes().decode("utf-8-sig")
    except (PermissionError, FileNotFoundError) as error:
        raise BadSample(errors.CLOSED, f"{path.name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadSample(errors.ENCODING, f"{path.name}: {error}") from error


def caption(text: Any, nothing: str = "no caption") -> str:
    """A caption without white space around it; BadSample if ``nothing`` is left, TypeError if it is no text."""
    if not isinstance(text, str):
        raise TypeError(f"a caption is {text!r}, not text")
    if is_blank(text):
        raise BadSample(errors.EMPTY, nothing)
    return text.strip()


def read_lines(path: Path, tally: Tally) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbers, from 0, of the JSON objects of a file of lines, and the objects; other lines are counted.

    Raises:
        ValueError: the archive is cut off or damaged; names the file.
    """
    number = 0
    for place, text in text_lines(path, tally):
        if not text.strip():
            continue
        try:
            record = parse(text)
        except (ValueError, RecursionError) as error:
            tally.count(errors.JSON, f"{path.name}:{place}: {error}")
            continue
        if isinstance(record, dict):
            yield number, record
            number += 1
        else:
            tally.count(errors.JSON, f"{path.name}:{place}: a {type(record).__name__}, not an object")


def read_table(path: Path, tally: Tally) -> Iterator[tuple[int, dict[str, str]]]:
    """Numbers and rows of a CSV or TSV file with a header; what separates its columns is seen in that header."""
    with open_text(path) as file:
        lines = _table_lines(file)
        header = next(lines, "")
        separator = "\t" if "\t" in header else ";" if header.count(";") > header.count(",") else ","
        rows = csv.DictReader(itertools.chain([header], lines, [_BEHIND]), delimiter=separator)
        number = 0
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                tally.count(errors.FIELDS, f"{path.name}:{rows.line_num}: {error}")
            else:
                parts = (value if isinstance(value, list) else [value] for value in row.values())  # a list: too many
                values = [value for part in parts for value in part if value is not None]
                if values and values[-1].endswith(_BEHIND):
                    if values != [_BEHIND]:
                        where = f"{path.name}, row {number + 1}"
                        tally.count(errors.FIELDS, f"{where}: a quotation mark that nothing closes, up to the end")
                    return
                yield number, {key: value for key, value in row.items() if isinstance(key, str) and value is not None}
            number += 1


def _table_lines(file: TextIO) -> Iterator[str]:
    """Lines without NUL, which ``csv`` does not take; of one without end a part at a time."""
    while line := file.readline(_LONGEST_ROW):
        yield line.replace("\0", "")


def _begins_like_lines(path: Path) -> bool:
    """Whether the first line is a JSON object by itself and another follows."""
    if not beginning(path).startswith("{"):
        return False
    first, second = first_lines(path)
    if not (first.rstrip().endswith("}") and second.lstrip().startswith("{")):
        return False
    try:
        return isinstance(parse(first), dict)
    except (ValueError, RecursionError):
        return False


def _tables(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with extras.hint("pyarrow"):
        import pyarrow.parquet

    number = 0
    try:
        for batch in _batches(path, pyarrow):
            for row in batch.to_pylist():
                yield number, row
                number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a whole {path.suffix[1:]} file: {error}") from error


def _batches(path: Path, pyarrow: Any) -> Iterator[Any]:
    """A few rows at a time; ``datasets`` saves a stream of them."""
    if path.suffix.lower() == ".parquet":
        yield from pyarrow.parquet.ParquetFile(path).iter_batches(_ROWS)
        return
    with pyarrow.ipc.open_stream(path) as stream:
        for batch in stream:
            yield from (batch.slice(start, _ROWS) for start in range(0, len(batch), _ROWS))
