"""What people judged: JSON lines that only grow; of two judgements of a person about an item the later one counts."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kosmos.read_json import parse_json

CHOICES = ("left", "right", "tie", "skip")


@dataclass(frozen=True)
class Judgement:
    """One judgement of one person.

    Attributes:
        item: the key of the item.
        rater: who judged.
        judgement: ``left``, ``right``, ``tie``, or ``skip``.
        left, right: the names of the systems whose texts stood there.
        winner: the name of the system that was chosen; None for a tie or a skip.
        time: when, ISO 8601 in UTC.
        seed: of the order and the sides.
        question: what the page asked.
        inputs: the fingerprint of each system's file by its name, the first system first.
        same: both texts are the same, so that nobody was asked and it is a tie.
    """

    item: str
    rater: str
    judgement: str
    left: str
    right: str
    winner: str | None
    time: str
    seed: int
    question: str
    inputs: Mapping[str, str]
    same: bool = False

    @classmethod
    def from_json(cls, record: Any) -> Judgement:
        """Read a line.

        Raises:
            ValueError: it is no judgement, or says two things at once.
        """
        try:
            found = cls(**record)
            names, chosen = list(found.inputs), {"left": found.left, "right": found.right}.get(found.judgement)
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError("not a judgement of kosmos eval rate") from error
        texts = (found.item, found.rater, found.judgement, found.left, found.right, found.time)
        if not all(isinstance(text, str) for text in (*texts, *names, *found.inputs.values())):
            raise ValueError("not a judgement of kosmos eval rate")
        if sorted(names) != sorted((found.left, found.right)) or found.judgement not in CHOICES:
            raise ValueError(f"judgement {found.judgement!r} between {found.left!r} and {found.right!r} of {names}")
        if found.winner != chosen:
            raise ValueError(f"winner {found.winner!r} does not go with judgement {found.judgement!r}")
        return found


def latest(judgements: Iterable[Judgement]) -> dict[tuple[str, str], Judgement]:
    """The judgements that count, by rater and item."""
    return {(one.rater, one.item): one for one in judgements}


def read(path: Path) -> list[Judgement]:
    """All judgements of a file in the order in which they were made; a last line that was cut short was never one.

    Raises:
        FileNotFoundError, ValueError: no such file; a line that is no judgement; judgements of several inputs.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of ratings")
    *lines, tail = path.read_bytes().split(b"\n")
    found: list[Judgement] = []
    for number, line in enumerate([*lines, *([tail] if _is_whole(tail) else [])], start=1):
        if not line.strip():
            continue
        try:
            one = Judgement.from_json(parse_json(line))
        except ValueError as error:  # also of JSON
            raise ValueError(f"{path}:{number}: {error}") from error
        check_inputs(f"{path}:{number}", one.inputs, found[0].inputs if found else one.inputs)
        found.append(one)
    return found


def check_inputs(where: str, rated: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Raise ValueError, with all fingerprints, if ratings are of other texts than those that are wanted."""
    if dict(rated) != dict(wanted):
        raise ValueError(
            f"{where} is a rating of {_inputs(rated)}, not of {_inputs(wanted)}; give those files under those names, "
            "or another file for the ratings"
        )


def append(path: Path, judgement: Judgement) -> None:
    """Add a line, whole or not at all, behind those of whoever else writes to the file, and see it onto the disk.

    Raises:
        OSError: it cannot be written; the file is as it was.
    """
    line = json.dumps(asdict(judgement), ensure_ascii=False).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = _end_lines(file, path)
        try:
            if os.write(file, line) < len(line):
                raise OSError(f"{path}: no space is left for a judgement")
            os.fsync(file)
        except OSError:
            os.ftruncate(file, size)
            raise
    finally:
        os.close(file)


def _end_lines(file: int, path: Path) -> int:
    """Let the file end with a whole line, and return its size: what was cut short goes, what only lacks its end stays.

    Who wrote it is dead or was told that it failed, as the lock is ours.
    """
    size = os.fstat(file).st_size
    tail = path.read_bytes().rpartition(b"\n")[2] if size and os.pread(file, 1, size - 1) != b"\n" else b""
    if tail and _is_whole(tail):
        return size + os.write(file, b"\n")
    if tail:
        size -= len(tail)
        os.ftruncate(file, size)
    return size


def _is_whole(tail: bytes) -> bool:
    try:
        return isinstance(parse_json(tail), dict)
    except ValueError:
        return False


def _inputs(inputs: Mapping[str, str]) -> str:
    return " and ".join(f"{name} ({fingerprint})" for name, fingerprint in inputs.items())
