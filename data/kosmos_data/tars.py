"""The members of a stranger's tar, in order, past whatever is broken in it.

``tarfile`` ends its listing silently at the first header that is damaged, walks backwards where a size is negative, and
believes a sparse file's word about its size. Here the listing goes on at the next good header, and what was passed over
is counted.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from . import errors
from .errors import Tally
from .reader import is_hidden

_BLOCK = 512
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"\x28\xb5\x2f\xfd": "unzstd", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz"}


def find_tars(folder: Path) -> list[Path]:
    """The ``.tar`` files of a folder, in any case of their ending.

    Raises:
        FileNotFoundError: there is none; says what lies there instead, and what to do with it.
    """
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() == ".tar" and not is_hidden(path.name))
    if paths:
        return paths
    packed = next(
        (p for p in sorted(folder.glob("*")) if ".tar." in p.name.lower() or p.suffix.lower() == ".tgz"), None
    )
    deeper = next(iter(sorted(folder.glob("*/*.tar"))), None)
    if packed is not None:
        raise FileNotFoundError(f"{folder} holds no .tar files, but {packed.name}: unpack it to .tar first (gunzip)")
    if deeper is not None:
        raise FileNotFoundError(f"{folder} holds no .tar files itself, but {deeper.parent} does: give that folder")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    found = sorted({path.suffix.lower() for path in folder.glob("*") if path.is_file() and path.suffix})
    what = f"files ending in {', '.join(found[:5])}" if found else "nothing of use"
    raise FileNotFoundError(f"{folder} holds no .tar files, but {what}; kosmos data import reads other formats")


def members(path: Path, tally: Tally | None = None) -> Iterator[tarfile.TarInfo]:
    """Files and links of a tar, in their order; hidden files, folders and devices are left out.

    Args:
        path: an uncompressed tar.
        tally: where each stretch that cannot be read is counted.

    Raises:
        ValueError: the file is no tar at all, is compressed, or ends before its last member does.
    """
    tally = Tally() if tally is None else tally
    with path.open("rb") as file:
        _check_beginning(path, file)
        start: int | None = 0
        while start is not None:
            end = start
            for member, behind in _listing(path, file, start):
                end = behind
                if (member.isfile() or member.islnk() or member.issym()) and not is_hidden(member.name):
                    yield member
            if start == end == 0:
                raise ValueError(f"{path} is not a whole tar: it begins with no header")
            # A header that was good by itself and led nowhere would be found again.
            start = _next_header(file, end if end > start else end + _BLOCK)
            if start is not None:
                tally.count(errors.TAR, f"{path.name}, byte {end}")


def _listing(path: Path, file: BinaryIO, start: int) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Each member from byte ``start`` on and where it ends, up to the tar's end or a header that cannot be read."""
    size, before = path.stat().st_size, start
    file.seek(start)
    try:
        tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - it would only close what is ours
        while (member := tar.next()) is not None and tar.offset > before:  # a negative size leads backwards
            if tar.offset > size:
                raise _Truncated(f"{path} is truncated: its last file ends at byte {tar.offset} of {size}")
            before = tar.offset
            tar.members.clear()  # type: ignore[attr-defined]  # a tar may have ten million
            yield member, tar.offset
    except _Truncated as error:
        raise ValueError(str(error)) from None
    except (tarfile.TarError, EOFError, RecursionError, ValueError, OverflowError) as error:
        if start == before == 0:
            raise ValueError(f"{path} is not a whole tar: {error}") from error


class _Truncated(Exception):  # noqa: N818 - not to be taken for what tarfile raises
    pass


def _check_beginning(path: Path, file: BinaryIO) -> None:
    first = file.read(8)
    for magic, command in _COMPRESSED.items():
        if first.startswith(magic):
            raise ValueError(f"{path} is not a whole tar: it is compressed; {command} it first")


def _next_header(file: BinaryIO, position: int) -> int | None:
    """Where the next good header at or behind ``position`` begins; None: only the tar's end is left."""
    file.seek(position)
    blocks = 0
    while len(block := file.read(_BLOCK)) == _BLOCK:
        if blocks == 0 and not any(block):
            return None
        if block[257:262] == b"ustar" or blocks == 0:
            with suppress(tarfile.HeaderError):  # no header, or a damaged one: the next block may be one
                tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                return position + blocks * _BLOCK
        blocks += 1
    return None
