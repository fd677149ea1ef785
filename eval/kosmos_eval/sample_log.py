"""The per-sample log: one JSON line for each answered item, which is also what makes a run resumable and shardable.

Every rank appends to its own part file and never waits for the others; lines carry a hash of all that decided the
answer (weights, prompt, images, decoding), so a later run takes over exactly the lines that still hold, whichever
rank of however many wrote them. Rank 0 merges the parts, in the order of the items, into one file.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from kosmos.atomic import write_atomically
from kosmos.read_json import parse_json

_POLL_SECONDS = 0.2, 5.0  # at first and at most: each look reads all parts again
_STALL_SECONDS = 1800.0

Record = dict[str, Any]


@dataclass(frozen=True)
class Rank:
    """This process among those that share the work; read from torchrun's environment by default."""

    index: int = 0
    world: int = 1

    @classmethod
    def from_environment(cls) -> Rank:
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))

    def device(self, wanted: str | None = None) -> str:
        """The device ``wanted``, or this rank's GPU if there are any.

        Raises:
            ValueError: there is no such device.
        """
        import torch

        if wanted is None:
            return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
        try:
            torch.empty(0, device=wanted)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device {wanted!r}: {str(error).splitlines()[0]}") from error
        return wanted


class SampleLog:
    """Records of one run (task, shots, context) below ``folder``; in memory only if ``folder`` is None.

    Use as a context manager around the writing.
    """

    def __init__(self, folder: Path | None, name: str, rank: Rank) -> None:
        if folder is None and rank.world > 1:
            raise ValueError("several ranks share their answers through files: give an output folder")
        self.folder, self.name, self.rank = folder, name, rank
        self._records: dict[tuple[str, str], Record] = {}  # by item and request
        self._file: IO[str] | None = None

    def __enter__(self) -> SampleLog:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            part = self._part(self.rank.index)
            _end_last_line(part)
            self._file = part.open("a", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def finished(self, requests: Mapping[str, str]) -> dict[str, Record]:
        """Records on disk, of any rank, that answer the given requests (item id → request hash)."""
        for path in self._files():
            self._read(path)
        return self._known(requests)

    def _known(self, requests: Mapping[str, str]) -> dict[str, Record]:
        return {key: self._records[key, wanted] for key, wanted in requests.items() if (key, wanted) in self._records}

    def add(self, records: Iterable[Record]) -> None:
        """Append records and hand them to the operating system, so that a killed run keeps them."""
        for record in records:
            self._records[record["id"], record["request"]] = record
            if self._file is not None:
                self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
        if self._file is not None:
            self._file.flush()

    def wait(self, order: Sequence[str], requests: Mapping[str, str]) -> list[Record]:
        """All records in the given order; with several ranks, as soon as the others have written theirs.

        Raises:
            RuntimeError: another rank made no progress for half an hour.
        """
        deadline, count, (pause, longest) = time.monotonic() + _STALL_SECONDS, -1, _POLL_SECONDS
        found = self._known(requests)  # of one rank alone: all
        while len(found) < len(order) and len(found := self.finished(requests)) < len(order):
            if len(found) > count:
                deadline, count = time.monotonic() + _STALL_SECONDS, len(found)
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"{self.name}: {len(order) - count} answers of other ranks never came; are they alive?"
                )
            time.sleep(pause)
            pause = min(1.2 * pause, longest)
        return [found[key] for key in order]

    def publish(self, records: Sequence[Record]) -> None:
        """Write the merged file and remove the parts; answers to items that this run leaves out (``--limit``) are kept
        in a part of their own, for a later run."""
        if self.folder is None:
            return
        ids = {record["id"] for record in records}
        others = [record for (key, _), record in self._records.items() if key not in ids]
        parts = set(self.folder.glob(f"{_escaped(self.name)}.part-*.jsonl"))
        if others:
            _write(self._part("rest"), others)
            parts.discard(self._part("rest"))
        _write(self.folder / f"{self.name}.jsonl", records)
        for part in parts:
            part.unlink(missing_ok=True)

    def _part(self, rank: int | str) -> Path:
        assert self.folder is not None
        return self.folder / f"{self.name}.part-{rank}.jsonl"

    def _files(self) -> list[Path]:
        if self.folder is None:
            return []
        parts = sorted(self.folder.glob(f"{_escaped(self.name)}.part-*.jsonl"))
        return [path for path in (self.folder / f"{self.name}.jsonl", *parts) if path.is_file()]

    def _read(self, path: Path) -> None:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    record = parse_json(line)
                    self._records[record["id"], record["request"]] = record
                except (json.JSONDecodeError, KeyError, TypeError):
                    continue  # torn by a kill, or half written as we read: the item is asked, or looked for, again


def request_hash(*parts: Any) -> str:
    """A short hash of everything that decides an answer."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _write(path: Path, records: Iterable[Record]) -> None:
    """One line a record; a kill leaves the old file."""
    write_atomically(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def _end_last_line(path: Path) -> None:
    """Close a torn last line, so that the next record does not join it."""
    if path.is_file() and (content := path.read_bytes()) and not content.endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")


def _escaped(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)
