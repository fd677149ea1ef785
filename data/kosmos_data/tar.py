"""Writing the tars of shards by Python's ``tarfile``, byte for byte what ``webdataset.TarWriter`` writes.

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


def header(name: str, size: int) -> bytes:
    """The header of a plain file of nobody and no time, so that the same content gives the same bytes everywhere.

    The time is an integer, since a fraction would cost every file an extended header of 1,024 bytes.
    """
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode, info.uname, info.gname = size, 0, 0o644, "kosmos", "kosmos"
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
