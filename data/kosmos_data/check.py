"""``kosmos data check``: read every byte of a corpus and say what is wrong with it, shard by shard.

And ``kosmos data index``: make the index of a folder of webdataset tars that some other program wrote.
"""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from kosmos.media import read_through
from kosmos.segments import Unreadable

from . import errors
from .document import Fused, Image, files_of, from_files
from .errors import BadSample, Tally
from .images import open_image
from .index import INDEX_NAME, ShardInfo, offsets_fault, read_index, read_offsets, write_index, write_offsets
from .reader import check_size, parse_sample, split_name
from .tars import find_tars, members


@dataclass
class ShardReport:
    """What a check found in one shard: whole-file problems, and bad samples by reason with the first ten of each."""

    name: str
    documents: int = 0
    images: int = 0
    problems: list[str] = field(default_factory=list)
    bad: Tally = field(default_factory=Tally)

    @property
    def good(self) -> bool:
        return not self.problems and not self.bad


def check_corpus(root: str | Path, decode_images: bool = True) -> Iterator[ShardReport]:
    """Check each shard of a local corpus against its index, hash and offsets, and each sample within.

    Args:
        root: folder that holds ``index.json``.
        decode_images: also decode every image.

    Raises:
        FileNotFoundError: no such folder or no ``index.json``.
        ValueError: ``index.json`` itself is malformed.
    """
    shards, _ = read_index(str(root))
    for info in shards:
        yield _check_shard(Path(root), info, decode_images)


def index_folder(root: str | Path) -> list[ShardInfo]:
    """Write ``.tar.idx`` files and ``index.json`` for the tars of a folder, so that the loader can read them.

    Raises:
        FileNotFoundError: the folder holds no tar.
        ValueError: it has an ``index.json`` already, or a tar is truncated.
    """
    root = Path(root)
    paths = find_tars(root)
    if (root / INDEX_NAME).exists():
        raise ValueError(f"{root} already has an {INDEX_NAME}; remove it to index anew")
    shards = [_index_tar(path) for path in paths]
    write_index(root, shards)
    return shards


def sample_offsets(path: Path) -> array[int]:
    """Byte offset of every sample of a tar, then the end of the last; ValueError if the tar is truncated."""
    offsets = array("q")  # a tar may have ten million
    key, end = None, 0
    for member in members(path):
        stem, _ = split_name(member.name)
        if stem != key:
            offsets.append(member.offset)
            key = stem
        size = member.size if member.isfile() else 0
        end = member.offset_data + -(-size // 512) * 512
    offsets.append(end)
    return offsets


def _index_tar(path: Path) -> ShardInfo:
    offsets = sample_offsets(path)
    write_offsets(path, offsets)
    images = characters = 0
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        for start, end in itertools.pairwise(offsets):
            try:
                document = from_files(*_read_sample(file, start, end))
            except BadSample:  # counted when it is read or checked; it keeps its number
                continue
            images += len(document.images)
            characters += len(document.text)
    return ShardInfo(path.name, path.stat().st_size, digest, len(offsets) - 1, images, characters)


def _read_sample(file: BinaryIO, start: int, end: int) -> tuple[str, dict[str, bytes]]:
    check_size(end - start)
    file.seek(start)
    return parse_sample(file.read(end - start))


def _check_shard(root: Path, info: ShardInfo, decode_images: bool) -> ShardReport:
    report = ShardReport(info.name)
    path = root / info.name
    if not path.exists():
        report.problems.append("missing")
        return report
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != info.sha256:
            size = path.stat().st_size
            what = f"truncated to {size} of {info.bytes} bytes" if size < info.bytes else "content changed"
            report.problems.append(f"{what}: sha256 differs")
    try:
        offsets = read_offsets(str(path))
    except (FileNotFoundError, ValueError) as error:
        report.problems.append(str(error))
        return report
    if fault := offsets_fault(offsets, info):
        report.problems.append(f".tar.idx {fault}")
        return report
    _check_samples(path, offsets.tolist(), report, decode_images)
    return report


def _decode(segment: Any) -> None:
    """Decode the picture, the sound or the frames of a segment; BadSample where that fails."""
    if isinstance(segment, Fused):
        open_image(segment.data)
        return
    try:
        for name in files_of(type(segment)):
            read_through(getattr(segment, name))
    except Unreadable as error:
        raise BadSample(errors.UNREADABLE, str(error)) from error


def _check_samples(path: Path, offsets: list[int], report: ShardReport, decode_images: bool) -> None:
    keys: Counter[str] = Counter()
    with path.open("rb") as file:
        for number, (start, end) in enumerate(itertools.pairwise(offsets)):
            report.documents += 1
            key = f"sample {number}"
            try:
                key, files = _read_sample(file, start, end)
                keys[key] += 1
                for segment in from_files(key, files).segments:
                    if isinstance(segment, Image):
                        report.images += 1
                        if decode_images:
                            open_image(segment.data)
                    elif decode_images and files_of(type(segment)):
                        _decode(segment)
            except BadSample as error:
                report.bad.count(error.reason, error.of(key))
    if doubled := [key for key, count in keys.items() if count > 1]:
        report.problems.append(f"{len(doubled)} keys occur twice, first {doubled[0]!r}")
