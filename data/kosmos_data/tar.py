"""Writing the tars of shards, byte for byte what ``webdataset.TarWriter`` writes.

That writer would import torch into each process that makes a corpus, two seconds of a processor, and ``tarfile`` needs
three times as long as what is here for the header of a small file; names and sizes that are not plain are left to it.
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from typing import Protocol

_BLOCK = tarfile.BLOCKSIZE
_LONGEST_NAME = 100  # bytes; of longer ones, and of more than ASCII, tarfile writes an extended header
_LARGEST = 8**11  # bytes; a size has eleven octal digits


class Sink(Protocol):
    """What bytes can be written to."""

    def write(self, data: bytes, /) -> int: ...


def _described(name: str, size: int) -> tarfile.TarInfo:
    """A plain file of nobody and no time, so that the same content gives the same bytes on every machine.

    The time is an integer, since a fraction would cost every file an extended header of 1,024 bytes.
    """
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode, info.uname, info.gname = size, 0, 0o644, "kosmos", "kosmos"
    return info


_TEMPLATE = _described("", 0).tobuf(tarfile.PAX_FORMAT)
_MODE_TO_OWNER, _TIME, _REST = _TEMPLATE[100:124], _TEMPLATE[136:148], _TEMPLATE[155:]
_FIXED_SUM = sum(_MODE_TO_OWNER) + sum(_TIME) + sum(_REST) + 7 * ord(" ")  # the checksum itself counts as spaces


def header(name: str, size: int) -> bytes:
    """The header of a plain file, POSIX ustar (with pax records where it needs them)."""
    if not name.isascii() or len(name) > _LONGEST_NAME or size >= _LARGEST:
        return _described(name, size).tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    field, digits = name.encode().ljust(_LONGEST_NAME, b"\0"), b"%011o\0" % size
    checksum = b"%06o\0" % (_FIXED_SUM + sum(field) + sum(digits))
    return b"".join((field, _MODE_TO_OWNER, digits, _TIME, checksum, _REST))


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
            self._put(header(f"{key}.{ending}", len(content)) + content + b"\0" * (-len(content) % _BLOCK))

    def close(self) -> None:
        """Write the end: two blocks of zeros, filled up to a record."""
        end = self.offset + 2 * _BLOCK
        self._put(b"\0" * (end - self.offset + -end % tarfile.RECORDSIZE))

    def _put(self, data: bytes) -> None:
        self.file.write(data)
        self.offset += len(data)
