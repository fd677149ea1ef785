"""What the recipes share: splits and draws that follow from content alone, and the writing of a corpus' parts."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from rich.progress import Progress

from ..document import Document
from ..shards import write_shards

One = TypeVar("One")


def held_out(content: str, every: int) -> bool:
    """True for one text in ``every``, by its sha256: never by its place, so that a new source moves no old one."""
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:4], "big") % every == 0


def split(found: Iterable[One], content: Callable[[One], str], every: int) -> tuple[list[One], list[One]]:
    """What is trained on, and what is held out by a text of each."""
    parts: tuple[list[One], list[One]] = ([], [])
    for one in found:
        parts[held_out(content(one), every)].append(one)
    return parts


def lot(content: str) -> bytes:
    """What a text is drawn by: like its split it stays where other texts come or go."""
    return hashlib.sha256(content.encode()).digest()


def write_parts(
    out: Path,
    parts: Mapping[str, Iterable[Document]],
    documents_per_shard: int,
    counts: Counter[str] | dict[str, int],
    progress: Progress,
    may_be_empty: bool = True,
    total: int | None = None,
) -> None:
    """Write a folder of shards for each part below ``out``; ``counts`` learns how many documents each has.

    Raises:
        ValueError: a part has no document, unless it ``may_be_empty``.
    """
    for name, documents in parts.items():
        passing = progress.track(_counted(documents, counts, name), total=total, description=f"shards: {name}")
        write_shards(out / name, passing, documents_per_shard, may_be_empty=may_be_empty)


def _counted(documents: Iterable[Document], counts: Counter[str] | dict[str, int], name: str) -> Iterator[Document]:
    counts[name] = 0
    for document in documents:
        counts[name] += 1
        yield document
