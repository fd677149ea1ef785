"""``index.json`` and ``.tar.idx``: the two small files that make a folder of tars a corpus.

``index.json`` at the root names every shard with size, sha256 and counts; ``NAME.tar.idx`` beside ``NAME.tar`` holds
little-endian uint64 byte offsets, one per sample and then the end of the last sample (the layout of Megatron-Energon).
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kosmos.atomic import write_atomically
from kosmos.plain import pasted
from kosmos.read_json import parse_json

from .document import PICTURES

INDEX_NAME = "index.json"
INDEX_VERSION = 1
_RETRY_SECONDS = (0.5, 2.0, 8.0)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """What ``index.json`` says of one tar: its path below the root, size in bytes, sha256 and counts."""

    name: str
    bytes: int
    sha256: str
    documents: int
    images: int
    characters: int


def _instead(root: str) -> str:
    """What a folder without an index holds, and what is done with it."""
    if is_remote(root):
        return ""
    inside = sorted(Path(root).iterdir())
    if corpora := [path for path in inside if (path / INDEX_NAME).is_file()]:
        return f", but its folders do: name one or several of them, e.g. {corpora[0]}"
    if any(path.suffix.lower() == ".tar" for path in inside):
        return f"; for tars of other origin run: kosmos data index {pasted(root)}"
    if picture := next((path for path in Path(root).rglob("*") if path.suffix.lower()[1:] in PICTURES), None):
        return f", but pictures ({picture.name}): run: kosmos data import folder {pasted(root)} --out FOLDER"
    if not inside:
        return "; it is empty: kosmos data import fills a new one, kosmos data index takes tars that lie there"
    return f", nor tars or pictures, but {inside[0].name}"


def read_index(root: str) -> tuple[list[ShardInfo], bytes]:
    """The shards of the corpus at ``root`` and the raw bytes of its ``index.json``.

    Raises:
        FileNotFoundError: no such folder, or it holds no ``index.json``.
        ValueError: the index is malformed, of another version, or lists no document.
    """
    path = f"{root}/{INDEX_NAME}"
    if not is_remote(root) and not os.path.isdir(root):
        raise FileNotFoundError(f"{root}: no such folder of shards")
    try:
        raw = read_bytes(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{root} holds no {INDEX_NAME}{_instead(root)}") from None
    try:
        body = parse_json(raw)
        if body["version"] != INDEX_VERSION:
            raise ValueError(f"version {body['version']}, this program reads version {INDEX_VERSION}")
        shards = [_checked(ShardInfo(**shard)) for shard in body["shards"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a shard index: {error}") from error
    if not any(shard.documents for shard in shards):
        raise ValueError(f"{root} holds no documents")
    return shards, raw


def _checked(shard: ShardInfo) -> ShardInfo:
    """The shard, if its name lies in the corpus's own folder and its numbers are some; ValueError otherwise."""
    if not isinstance(shard.name, str) or shard.name in ("", ".", "..") or {"/", "\\", "\0"} & set(shard.name):
        raise ValueError(f"{shard.name!r} is no name of a file beside it")
    for field in ("bytes", "documents", "images", "characters"):
        number = getattr(shard, field)
        if type(number) is not int or not 0 <= number < 2**63:
            raise ValueError(f"{shard.name}: {field} is {number!r}")
    return shard


def write_index(root: Path, shards: list[ShardInfo]) -> None:
    """Write ``index.json`` atomically: version, totals, and one row per shard."""
    totals = {name: sum(getattr(shard, name) for shard in shards) for name in ("documents", "images", "characters")}
    body = {"version": INDEX_VERSION, **totals, "shards": [asdict(shard) for shard in shards]}
    write_atomically(root / INDEX_NAME, json.dumps(body, indent=1) + "\n")


def read_offsets(tar_path: str) -> np.ndarray:
    """The byte offsets (documents + 1,) of the tar at ``tar_path``, from its ``.tar.idx``."""
    raw = read_bytes(tar_path + ".idx")
    if len(raw) % 8:
        raise ValueError(f"{tar_path}.idx has {len(raw)} bytes, not a multiple of 8: truncated")
    return np.frombuffer(raw, dtype="<u8")


def offsets_fault(offsets: np.ndarray, shard: ShardInfo) -> str | None:
    """Why ``offsets`` cannot be those of ``shard``, or None."""
    if len(offsets) != shard.documents + 1:
        return f"lists {len(offsets) - 1} samples, {INDEX_NAME} says {shard.documents}"
    if (offsets[1:] <= offsets[:-1]).any() or offsets[-1] > shard.bytes:
        return "does not ascend within the tar"
    return None


def write_offsets(tar_path: Path, offsets: Sequence[int]) -> None:
    """Write the ``.tar.idx`` of the tar at ``tar_path``: sample offsets, then the end of the last sample."""
    write_atomically(tar_path.with_suffix(".tar.idx"), np.asarray(offsets, dtype="<u8").tobytes())


def is_remote(path: str) -> bool:
    return "://" in path


def read_bytes(path: str) -> bytes:
    """The whole file at a local path or fsspec URL."""
    return _read_remote(path, None, None) if is_remote(path) else Path(path).read_bytes()


def read_range(path: str, start: int, end: int) -> bytes:
    """Bytes ``start`` … ``end`` of the file at an fsspec URL.

    Raises:
        FileNotFoundError, PermissionError: at once; there is no such file, or it may not be read.
        OSError: the read failed again and again, or the server sends whole files when asked for a part.
    """
    return _read_remote(path, start, end)


def _read_remote(path: str, start: int | None, end: int | None) -> bytes:
    """A failed or short read is tried again and never counts as bad data: skipping on a network fault would make the
    order depend on the weather.
    """
    wanted = None if start is None or end is None else end - start
    source = filesystem(path)
    for wait in (*_RETRY_SECONDS, None):
        try:
            data = source.cat_file(path, start=start, end=end)
            if wanted is None or len(data) == wanted:
                return data
            fault = f"{len(data)} of {wanted} bytes came"
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: no such file") from None
        except PermissionError as error:
            raise PermissionError(f"{path}: {error}") from error
        except Exception as error:  # each protocol has exceptions of its own, few of them OSErrors
            fault = f"{type(error).__name__}: {error}"
        else:
            if len(data) > wanted:
                raise OSError(f"{path}: {fault}; the server does not answer Range requests")
        if wait is None:
            raise OSError(f"{path}: {fault}; gave up after {len(_RETRY_SECONDS) + 1} attempts")
        logger.warning("%s: %s; trying again in %g s", path, fault, wait)
        time.sleep(wait)
    raise AssertionError("unreachable")


def filesystem(url: str) -> Any:
    """The fsspec file system of ``url``, of this process: its clients do not survive a fork, and fsspec keeps them.

    Raises:
        ValueError: an unknown protocol, or one whose package is not installed (fsspec says which).
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)[0]
    except ImportError as error:
        raise ValueError(f"{url}: {error}") from error
