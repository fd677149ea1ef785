"""The samples of a stranger's tar: links followed, files of one sample gathered from anywhere in it.

Where each member lies is kept in a temporary database of SQLite, which goes to disk once it outgrows its cache: a tar
of ten million members takes no more memory than one of ten thousand.
"""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import tarfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeAlias

from .. import errors
from ..document import safe_key
from ..errors import Tally
from ..reader import check_size, split_name
from ..tars import members
from ._files import key_of

Files: TypeAlias = Callable[[], dict[str, bytes]]
"""Reads the files of a sample, by their extension."""

_CACHE = 32 << 10  # KiB of the database that are held in memory
_LONGEST_CHAIN = 8  # links from one name to the next
_TABLE = "CREATE TABLE members (place INTEGER PRIMARY KEY, name UNIQUE, stem, start INTEGER, size INTEGER, link)"
_IN_SAMPLES = """
    SELECT stem, name FROM (SELECT place, stem, name, MIN(place) OVER (PARTITION BY stem) AS first FROM members)
    ORDER BY first, place"""


def tar_samples(path: Path, tally: Tally) -> Iterator[tuple[str, Files]]:
    """The key of each sample of a tar, in the order in which samples begin, and what reads its files.

    Raises:
        ValueError: the file is no whole tar.
        OSError: there is no room for the temporary database.
    """
    stem = key_of(path.stem)
    try:
        with path.open("rb") as file, contextlib.closing(_Members()) as found:
            found.fill(path, tally)
            for name, kinds in found.samples():
                yield f"{stem}/{safe_key(name)}", partial(found.read, file, kinds)
    except sqlite3.OperationalError as error:
        raise OSError(f"{path}: no room for the list of its files ({error}); TMPDIR names another folder") from error


class _Members:
    """Every file and link of a tar by its name; of two members of one name the last, as tar unpacks them."""

    def __init__(self) -> None:
        self.rows = sqlite3.connect("", isolation_level=None)  # on disk, without a name, gone when it is closed
        for pragma in (f"cache_size = -{_CACHE}", "journal_mode = OFF", "synchronous = OFF", "temp_store = FILE"):
            self.rows.execute(f"PRAGMA {pragma}")
        self.rows.execute(_TABLE)

    def close(self) -> None:
        self.rows.close()

    def fill(self, path: Path, tally: Tally) -> None:
        self.rows.execute("BEGIN")
        for member in members(path, tally):
            name = str(PurePosixPath(member.name))
            if member.issparse():
                tally.count(errors.TAR, f"{path.name}: {name} is a sparse file", record=False)
            elif not self._add(name, member.offset_data, member.size, _target(name, member)):
                tally.count(errors.TAR, f"{path.name}: {name} is in it twice", record=False)
        self.rows.execute("COMMIT")

    def _add(self, name: str, start: int, size: int, link: str | None) -> bool:
        """Put a member in; False if it takes the place of another of its name."""
        where = (start, size, None) if link is None else (0, 0, _as_bytes(link))
        stem = _as_bytes(split_name(name)[0])
        new = "INSERT OR IGNORE INTO members (name, stem, start, size, link) VALUES (?, ?, ?, ?, ?)"
        if self.rows.execute(new, (_as_bytes(name), stem, *where)).rowcount:
            return True
        self.rows.execute("UPDATE members SET start = ?, size = ?, link = ? WHERE name = ?", (*where, _as_bytes(name)))
        return False

    def samples(self) -> Iterator[tuple[str, dict[str, str]]]:
        """The file names of each sample by extension, in the order in which samples begin."""
        for stem, rows in itertools.groupby(self.rows.execute(_IN_SAMPLES), key=lambda row: row[0]):
            yield from _split(_as_text(stem), (_as_text(name) for _, name in rows)).items()

    def read(self, file: BinaryIO, kinds: dict[str, str]) -> dict[str, bytes]:
        """The bytes of a sample's files, without those that a link does not lead to; BadSample if they are too many."""
        places = {kind: place for kind, name in kinds.items() if (place := self._place(name)) is not None}
        check_size(sum(size for _, size in places.values()))
        return {kind: _read(file, *place) for kind, place in places.items()}

    def _place(self, name: str) -> tuple[int, int] | None:
        """Where a member's bytes are, through links; None if they lead nowhere or in a circle."""
        wanted = _as_bytes(name)
        for _ in range(_LONGEST_CHAIN):
            row = self.rows.execute("SELECT start, size, link FROM members WHERE name = ?", (wanted,)).fetchone()
            if row is None or row[2] is None:
                return None if row is None else (row[0], row[1])
            wanted = row[2]
        return None


def _target(name: str, member: tarfile.TarInfo) -> str | None:
    """The name that a link points to; None for a file."""
    if member.issym():
        return str(PurePosixPath(name).parent / member.linkname)
    return str(PurePosixPath(member.linkname)) if member.islnk() else None


def _split(stem: str, names: Iterable[str]) -> dict[str, dict[str, str]]:
    """The samples among the files of one stem.

    A name is cut at its first dot, as webdataset does. Where that leaves neither text nor JSON (``a.v2.jpg``,
    ``a.v2.txt``), at its last.
    """
    kinds = {split_name(name)[1]: name for name in names}
    if kinds.keys() & {"json", "txt"}:
        return {stem: kinds}
    samples: dict[str, dict[str, str]] = {}
    for extension, name in kinds.items():
        last = extension.rpartition(".")[2]
        samples.setdefault(name[: -len(last) - 1] if last else name, {})[last] = name
    return samples


def _read(file: BinaryIO, start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)


def _as_bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")  # a stranger's name may hold half a character


def _as_text(name: bytes) -> str:
    return name.decode("utf-8", "surrogatepass")
