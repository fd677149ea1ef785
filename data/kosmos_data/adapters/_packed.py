"""Text of strangers' files: whatever it is packed with, line by line or as a stream, and never more than fits."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

from .. import errors
from ..errors import Tally

_LONGEST_LINE = 64 << 20  # bytes of one JSON line; a bomb of gzip is one line without end
_LONG_LINE = 16 << 20
_BEGINNING = 4096
_BINARY = {
    b"PK\x03\x04": "a zip, as spreadsheets and documents are: export it as text (CSV, JSON lines)",
    b"\xd0\xcf\x11\xe0": "a document of an office program: export it as text (CSV, JSON lines)",
    b"PAR1": "parquet: name it so (.parquet); kosmos data import parquet reads it",
    b"\x1f\x8b": "packed by gzip: name it so (.gz)",
    b"BZh": "packed by bzip2: name it so (.bz2)",
    b"\xfd7zX": "packed by xz: name it so (.xz)",
    b"\x28\xb5\x2f\xfd": "packed by zstd: name it so (.zst)",
    b"\xff\xfe": "in UTF-16: save it as UTF-8 (iconv -f UTF-16 -t UTF-8)",
    b"\xfe\xff": "in UTF-16: save it as UTF-8 (iconv -f UTF-16 -t UTF-8)",
}


def text_lines(path: Path, tally: Tally) -> Iterator[tuple[int, str]]:
    """Numbers, from 1, and texts of the lines of a file; those too long to be a record are counted.

    Bytes that are not UTF-8 become lone surrogates.

    Raises:
        ValueError: the file is no text, or its archive is cut off or damaged; names it.
    """
    for place, line in enumerate(_bounded_lines(path), start=1):
        if line is None:
            tally.count(errors.LINE_TOO_LONG, f"{path.name}:{place}")
        else:
            yield place, line.decode("utf-8-sig" if place == 1 else "utf-8", "surrogateescape")


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """The text of a file as a stream, without a byte order mark; line ends stay as they are.

    Raises:
        ValueError: as :func:`text_lines`.
    """
    with _reading(path) as file:
        yield io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")


def beginning(path: Path) -> str:
    """The first characters of a file, from its first that is no white space."""
    with _reading(path) as file:
        return file.read(_BEGINNING).decode("utf-8-sig", "replace").lstrip()


def first_lines(path: Path) -> tuple[str, str]:
    """The first two lines of a file, of long ones the beginning."""
    with _reading(path) as file:
        first, second = (file.readline(_LONG_LINE).decode("utf-8-sig", "replace") for _ in range(2))
    return first, second


def _bounded_lines(path: Path) -> Iterator[bytes | None]:
    """The lines of a file; None for one that is too long to be a record."""
    with _reading(path) as file:
        while line := file.readline(_LONGEST_LINE):
            if len(line) < _LONGEST_LINE:
                yield line
                continue
            while len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
                line = file.readline(_LONGEST_LINE)
            yield None


@contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    try:
        with _unpacked(path) as file:
            yield file
    except (EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is cut off or damaged: {error}") from error
    except OSError as error:
        if error.errno is not None:  # the disk's or the user's, not that of what unpacks it
            raise
        raise ValueError(f"{path} is cut off or damaged: {error}") from error
    except Exception as error:
        if type(error).__module__.startswith("zstandard"):
            raise ValueError(f"{path} is cut off or damaged: {error}") from error
        raise


def _unpacked(path: Path) -> io.BufferedReader:
    """The bytes of a file, whatever it is compressed with (of a zip, its one member); ValueError if it is no text."""
    from fsspec import compression, utils

    kind = utils.infer_compression(str(path))
    if path.suffix == ".zst" and kind is None:
        raise ValueError(f"{path} needs a package to be unpacked: pip install zstandard")
    if kind == "zip":
        with zipfile.ZipFile(path) as archive:
            if len(names := archive.namelist()) != 1:
                raise ValueError(f"{path} holds {len(names)} files, {', '.join(names[:4])} …; unzip it first")
    file = path.open("rb")
    unpacked = io.BufferedReader(compression.compr[kind](file, mode="rb")) if kind else file
    what = next((what for magic, what in _BINARY.items() if unpacked.peek(4).startswith(magic)), None)
    if what is not None:
        unpacked.close()
        raise ValueError(f"{path} is {what}")
    return unpacked
