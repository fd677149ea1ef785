"""Reading shards: any document of a corpus by its number, with one positioned read.

A :class:`Corpus` opens ``index.json`` at once and everything else when first touched, so a corpus of ten thousand
shards starts in well under a second and can be sent to a worker process as it is. Local paths are read with ``pread``;
paths with a scheme (``s3://``, ``hf://``, ``https://``) go through fsspec with range requests.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import tarfile
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from kosmos.plain import pasted

from . import errors
from .document import Document, from_files
from .errors import BadSample
from .index import INDEX_NAME, is_remote, offsets_fault, read_index, read_offsets, read_range

_BLOCK = 512
_OPEN_SHARDS = 64  # file descriptors and offset tables kept per process
_LARGEST_SAMPLE = 512 << 20  # bytes; a file of zeros that the disk does not even hold may say that it has a terabyte
_PLAIN = tarfile.REGTYPE + tarfile.AREGTYPE


class Corpus:
    """A folder of shards.

    Args:
        root: the folder that holds ``index.json``; a local path or any fsspec URL.
        check: whether to compare the size of every local shard with the index, one ``stat`` each. Of many processes
            that read the same folder one is enough.

    Raises:
        FileNotFoundError: no such folder, or it holds no ``index.json``.
        ValueError: the index is malformed, lists no document, or a local shard has not the size that it states.
    """

    def __init__(self, root: str | Path, check: bool = True) -> None:
        self.root = str(root).rstrip("/")
        self.remote = is_remote(self.root)
        self.shards, raw = read_index(self.root)
        self.fingerprint = hashlib.sha256(raw).hexdigest()[:16]
        self.counts = np.array([shard.documents for shard in self.shards], dtype=np.int64)
        self.starts = [0, *itertools.accumulate(self.counts.tolist())]
        self._files: OrderedDict[int, tuple[Any, np.ndarray]] = OrderedDict()
        if check and not self.remote:
            self._check_sizes()

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: int) -> Document:
        """Document number ``index`` (0 ≤ index < len); BadSample if its bytes are not a document."""
        key, files = self.files(index)
        return from_files(key, files)

    def __iter__(self) -> Iterator[Document]:
        """Every document in stored order; stops with BadSample at the first broken one."""
        return (self[index] for index in range(len(self)))

    def files(self, index: int) -> tuple[str, dict[str, bytes]]:
        """Key and files by extension of sample ``index``; BadSample if the tar is broken there."""
        shard, region = self.locate(index)
        return parse_sample(self._read(shard, region))

    def locate(self, index: int) -> tuple[int, int]:
        """(shard number, number within the shard) of sample ``index``."""
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)} in {self.root}")
        shard = bisect_right(self.starts, index) - 1
        return shard, index - self.starts[shard]

    def shard_of(self, index: int) -> str:
        """Path of the tar that holds sample ``index``."""
        return self.shard_path(self.locate(index)[0])

    def shard_path(self, shard: int) -> str:
        return f"{self.root}/{self.shards[shard].name}"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": OrderedDict()}  # descriptors stay in their process

    def _read(self, shard: int, sample: int) -> bytes:
        handle, offsets = self._open(shard)
        start, end = int(offsets[sample]), int(offsets[sample + 1])
        check_size(end - start)
        if self.remote:
            return read_range(self.shard_path(shard), start, end)
        return os.pread(handle.fileno(), end - start, start)

    def _open(self, shard: int) -> tuple[Any, np.ndarray]:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        path = self.shard_path(shard)
        offsets = read_offsets(path)
        if fault := offsets_fault(offsets, self.shards[shard]):
            raise ValueError(f"{path}.idx {fault}; run: kosmos data check {pasted(self.root)}")
        # The descriptor is closed when the handle is collected, that is when it leaves the table below.
        self._files[shard] = (None if self.remote else open(path, "rb"), offsets)  # noqa: SIM115
        if len(self._files) > _OPEN_SHARDS:
            self._files.popitem(last=False)
        return self._files[shard]

    def _check_sizes(self) -> None:
        for shard in self.shards:
            path = os.path.join(self.root, shard.name)
            try:
                size = os.stat(path).st_size
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{path} is listed in {INDEX_NAME} but missing") from error
            if size != shard.bytes:
                raise ValueError(f"{path} has {size} bytes, {INDEX_NAME} says {shard.bytes}: truncated or replaced")


def check_size(size: int) -> None:
    """BadSample where a sample of ``size`` bytes is larger than what anybody means to read at once."""
    if size > _LARGEST_SAMPLE:
        raise BadSample(errors.SAMPLE_TOO_LARGE, f"{size} bytes, {_LARGEST_SAMPLE} at most")


def parse_sample(region: bytes) -> tuple[str, dict[str, bytes]]:
    """Split the tar bytes of one sample into its key and its files by extension.

    Hidden files (``._0.jpg``, as macOS writes beside every file), folders and devices are passed over.

    Raises:
        BadSample: a header's checksum is wrong, a file runs past the end, or the files have more than one key.
    """
    key: str = ""
    files: dict[str, bytes] = {}
    position = 0
    while position + _BLOCK <= len(region):
        header = region[position : position + _BLOCK]
        if header[156] not in _PLAIN:
            return _parse_with_tarfile(region)
        name, size = _parse_header(header)
        start = position + _BLOCK
        position = start + -(-size // _BLOCK) * _BLOCK
        if position > len(region):
            raise BadSample(errors.TAR, f"{name} runs past the end of the sample")
        key = _add_file(key, files, name, region[start : start + size])
    if not files or position != len(region):
        raise BadSample(errors.TAR, "cut off" if files else "no file")
    return key, files


def _parse_header(header: bytes) -> tuple[str, int]:
    """Name and size of a plain file from its tar header (POSIX ustar); ``tarfile`` takes six times as long."""
    try:
        checksum = int(header[148:156].rstrip(b"\0 "), 8)
        size = int(header[124:136].rstrip(b"\0 "), 8)
        name, prefix = (header[a:b].partition(b"\0")[0].decode() for a, b in ((0, 100), (345, 500)))
    except ValueError as error:
        raise BadSample(errors.TAR, f"bad header: {error}") from error
    if checksum != sum(header) - sum(header[148:156]) + 8 * 32:  # the checksum itself counts as spaces
        raise BadSample(errors.TAR, "bad checksum")
    if size < 0:  # "-1000" is octal too, and would send the reader backwards for ever
        raise BadSample(errors.TAR, f"{name} has {size} bytes")
    return f"{prefix}/{name}" if prefix and header[257:262] == b"ustar" else name, size


def _parse_with_tarfile(region: bytes) -> tuple[str, dict[str, bytes]]:
    """The slow road, for long names and PAX headers as other writers make them."""
    key: str = ""
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=BytesIO(region), mode="r:") as tar:
            for member in tar:
                if member.isfile():
                    key = _add_file(key, files, member.name, _content(tar, member))
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise BadSample(errors.TAR, str(error)) from error
    if not files:
        raise BadSample(errors.TAR, "no file")
    return key, files


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.issparse():  # a few bytes that say that they are a terabyte
        raise BadSample(errors.TAR, f"{member.name} is a sparse file")
    content = tar.extractfile(member)
    assert content is not None
    return content.read()


def _add_file(key: str, files: dict[str, bytes], name: str, content: bytes) -> str:
    if is_hidden(name):
        return key
    stem, extension = split_name(name)
    if key and stem != key:
        raise BadSample(errors.TAR, f"files of {key!r} and {stem!r} in one sample")
    files[extension] = content
    return stem


def is_hidden(name: str) -> bool:
    """Whether a file of a tar is nobody's data: ``._0.jpg``, ``.DS_Store``."""
    return name.rpartition("/")[2].startswith(".")


def split_name(name: str) -> tuple[str, str]:
    """``a/b.0.JPG`` → (``a/b``, ``0.jpg``): webdataset's rule, the first dot of the last part."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()
