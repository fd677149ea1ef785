"""Writing shards: webdataset tars with an offset index beside each and one ``index.json`` at the root.

The tars are byte for byte those of ``webdataset.TarWriter``, so that webdataset and Energon read them. Beside
``000000.tar`` lies ``000000.tar.idx`` (little-endian uint64: the byte offset of every sample, then the end of the last;
Energon's layout), which makes any sample one positioned read. ``index.json`` names every shard with its counts and
sha256. Times, owners and order are fixed, so the same documents always give the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from .document import Document, Image, safe_key, to_files
from .entity_names import EntityNames
from .index import INDEX_NAME, ShardInfo, write_index, write_offsets
from .tar import TarWriter


class ShardWriter:
    """Write documents into ``root/000000.tar``, ``root/000001.tar`` …; a context manager.

    A shard appears under its final name only when it is whole, and ``index.json`` last of all, so a killed writer never
    leaves a folder that looks finished; one that an exception ended removes its shards, so that it can be tried again.

    Args:
        root: folder of the corpus; made if needed, must not hold shards already.
        max_documents: documents per shard.
        max_bytes: a shard is closed once it is larger than this.
    """

    def __init__(self, root: str | Path, max_documents: int = 10_000, max_bytes: int = 1_000_000_000) -> None:
        self.root = Path(root)
        self.root.mkdir(parents=True, exist_ok=True)
        if (self.root / INDEX_NAME).exists() or any(self.root.glob("*.tar")):
            raise ValueError(f"{self.root} already holds shards; write to an empty folder")
        self.max_documents = max_documents
        self.max_bytes = max_bytes
        self.shards: list[ShardInfo] = []
        self.documents = 0
        self._open: _OpenShard | None = None
        self._entities = EntityNames()

    def write(self, document: Document) -> None:
        """Append one document, under :func:`safe_key` of its key; ValueError if it or a segment cannot be written."""
        if self._open is None:
            self._open = _OpenShard(self.root, f"{len(self.shards):06d}.tar")
        self._open.write(document)
        self._entities.add(document)
        self.documents += 1
        if self._open.documents >= self.max_documents or self._open.file.size >= self.max_bytes:
            self._close_shard()

    def close(self) -> None:
        """Finish the last shard and write ``index.json``, before it ``entities.json`` if there are entities."""
        self._close_shard()
        self._entities.write(self.root)
        write_index(self.root, self.shards)

    def _close_shard(self) -> None:
        if self._open is not None:
            self.shards.append(self._open.close())
            self._open = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
            return
        if self._open is not None:
            self._open.abandon()
        if issubclass(kind, Exception):  # who stops a long import by hand may want to index what there is
            for shard in self.shards:
                (self.root / shard.name).with_suffix(".tar.idx").unlink(missing_ok=True)
                (self.root / shard.name).unlink(missing_ok=True)


def write_shards(
    root: str | Path, documents: Iterable[Document], max_documents: int = 10_000, may_be_empty: bool = False
) -> list[ShardInfo]:
    """Write all documents below ``root`` and return what was written.

    With ``may_be_empty`` no document is no error: a recipe's packages may lack one of several kinds.

    Raises:
        ValueError: there is no document, ``root`` holds shards already, or a document or segment cannot be written.
    """
    with ShardWriter(root, max_documents=max_documents) as writer:
        for document in documents:
            writer.write(document)
        if not writer.documents and not may_be_empty:
            raise ValueError(f"{root}: there is not one document to write; does the source hold any?")
    return writer.shards


class _OpenShard:
    def __init__(self, root: Path, name: str) -> None:
        self.path = root / name
        self.partial = root / f"{name}.partial"
        self.file = _HashingFile(self.partial.open("wb"))
        self.tar = TarWriter(self.file)
        self.offsets: list[int] = []
        self.keys: dict[str, int] = {}  # and how often each came
        self.documents = self.images = self.characters = 0

    def write(self, document: Document) -> None:
        key = self._unused(safe_key(document.key))
        files = to_files(replace(document, key=key))
        self.keys[key] = 1
        self.offsets.append(self.tar.offset)
        self.tar.write(key, files)
        self.documents += 1
        self.images += sum(isinstance(segment, Image) for segment in document.segments)
        self.characters += len(document.text)

    def _unused(self, key: str) -> str:
        """``key``, numbered if this shard has it already: readers of tars would take two such samples for one."""
        unused = key
        while unused in self.keys:
            self.keys[key] += 1
            unused = f"{key}-{self.keys[key]}"
        return unused

    def close(self) -> ShardInfo:
        end = self.tar.offset
        self.tar.close()
        self.file.close()
        write_offsets(self.path, [*self.offsets, end])
        self.partial.rename(self.path)
        digest = self.file.sha256.hexdigest()
        return ShardInfo(self.path.name, self.file.size, digest, self.documents, self.images, self.characters)

    def abandon(self) -> None:
        with contextlib.suppress(OSError):  # on a full disk what is left in its buffer cannot be written either
            self.file.close()
        self.partial.unlink(missing_ok=True)


class _HashingFile:
    """A file opened for writing that keeps its sha256 and size as it goes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.size += len(data)
        return self.file.write(data)

    def close(self) -> None:
        self.file.close()
