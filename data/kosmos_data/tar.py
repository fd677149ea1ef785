"""Writing the tars of shards with headers of Python's ``tarfile``, byte for byte what ``webdataset.TarWriter`` writes.

That writer stands on ``tarfile`` too, but its package would import torch into each process that makes a corpus: two
seconds of a processor.
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from typing import Protocol


class Sink(Protocol):
    """What bytes can be written to."""

    def write(self, data: bytes, /) -> int: ...


class TarWriter:
    """Samples of several files each, one behind the other.

    Args:
        file: gets the bytes.
    """

    def __init__(self, file: Sink) -> None:
        self.file = file
        self.offset = 0

    def write(self, key: str, files: Mapping[str, bytes]) -> None:
        """Append the files of a sample, by their endings in alphabetical order, as ``key.ending``."""
        for ending in sorted(files):
            content = files[ending]
            self._put(header(f"{key}.{ending}", len(content)) + content + b"\0" * (-len(content) % tarfile.BLOCKSIZE))

    def close(self) -> None:
        """Write the end: two blocks of zeros, filled up to a record."""
        end = self.offset + 2 * tarfile.BLOCKSIZE
        self._put(b"\0" * (end - self.offset + -end % tarfile.RECORDSIZE))

    def _put(self, data: bytes) -> None:
        self.file.write(data)
        self.offset += len(data)


_NAME, _SIZE, _SUM = slice(0, 100), slice(124, 135), slice(148, 154)
"""Where a header has its name, its size and the sum of its bytes, as octal digits (POSIX.1-1988, ustar)."""


def header(name: str, size: int) -> bytes:
    """The header of a plain file of nobody and no time, so that the same content gives the same bytes everywhere.

    The time is an integer, since a fraction would cost every file an extended header of 1,024 bytes. Headers that need
    no extended one differ in three fields only; to fill these takes a fifth of what ``tarfile`` takes for a header.
    """
    if not name.isascii() or len(name) > 100 or size >= 8**11:
        return _by_tarfile(name, size)
    found = bytearray(_EMPTY)
    found[_NAME] = name.encode().ljust(100, b"\0")
    found[_SIZE] = b"%011o" % size
    found[_SUM] = b"      "  # it counts as eight spaces, of which the last two are a zero and a space
    found[_SUM] = b"%06o" % (sum(found) + ord(" "))
    return bytes(found)


def _by_tarfile(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode, info.uname, info.gname = size, 0, 0o644, "kosmos", "kosmos"
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


_EMPTY = _by_tarfile("", 0)
