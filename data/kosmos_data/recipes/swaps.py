"""Recipe ``swaps``: who has the ball after so many swaps, answered at once and step by step (chain of thought).

    OUT/answers    shards: several problems each, with the answer alone
    OUT/steps      the same problems with the holder after each swap written out
    OUT/solved     with steps and answer
    OUT/eval       train.jsonl (demonstrations, problems of the shards) and steps_2.jsonl, steps_4.jsonl, …: held out

The three are what ``ball_swaps`` and the two prompts of ``ball_swaps_cot`` show as demonstrations (Wei and others 2022,
arXiv 2201.11903). A hash of its words decides whether a problem is held out, so none of ``eval`` is in the shards;
chains longer than ``most`` occur in no document. All of it is drawn.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import Progress

from ..document import Document, Text
from ..shards import write_shards

PEOPLE = ("Ann", "Ben", "Cem", "Dan", "Eve", "Fay", "Gus", "Hal")
KINDS = ("answers", "steps", "solved")
HELD_OUT = 5
"""One problem in so many is held out."""


@dataclass
class Options:
    """What ``swaps`` draws.

    Args:
        documents: of each kind.
        problems: in a document.
        people: who may have the ball.
        most: swaps of a problem of training at most; each has from one to so many.
        lengths: swaps of the held-out problems, a file each.
        items: problems in each of these files, and demonstrations.
        seed: of all draws.
    """

    documents: int = 20_000
    problems: int = 3
    people: int = 5
    most: int = 6
    lengths: list[int] = field(default_factory=lambda: [2, 4, 6, 8])
    items: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if not 3 <= self.people <= len(PEOPLE):
            raise ValueError(f"people={self.people} must be from 3 to {len(PEOPLE)}, for so many have names")
        for name in ("documents", "problems", "most", "items"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for length in self.lengths:
            there_are = self.people * (self.people * (self.people - 1)) ** length
            if there_are < 2 * HELD_OUT * self.items:
                raise ValueError(
                    f"lengths={self.lengths}: there are {there_are} problems of {length} swaps, of which one in "
                    f"{HELD_OUT} is held out: too few for items={self.items}"
                )


@dataclass(frozen=True)
class Problem:
    """Who has the ball at first, and who then swap what they hold."""

    first: str
    swaps: tuple[tuple[str, str], ...]

    @property
    def question(self) -> str:
        """As it is asked."""
        return " ".join([f"{self.first} has the ball.", *(f"{one} and {two} swap." for one, two in self.swaps)])

    @property
    def holders(self) -> list[str]:
        """Who has it after each swap."""
        found, holder = [], self.first
        for one, two in self.swaps:
            holder = {one: two, two: one}.get(holder, holder)
            found.append(holder)
        return found

    @property
    def rationale(self) -> str:
        """The steps, one a swap."""
        steps = zip(self.swaps, self.holders, strict=True)
        return " ".join(f"{one} and {two}: {holder}." for (one, two), holder in steps)

    @property
    def answer(self) -> str:
        """Who has it in the end."""
        return self.holders[-1]

    @property
    def is_held_out(self) -> bool:
        """Whether it is kept from training, by a hash of its words."""
        return hashlib.sha256(self.question.encode()).digest()[0] % HELD_OUT == 0


def build(out: Path, options: Options, progress: Progress) -> dict[str, Any]:
    """Write the corpus below ``out``; return counts for the report."""
    for kind in KINDS:
        made = progress.track(documents(options, kind), total=options.documents, description=f"shards: {kind}")
        write_shards(out / kind, made)
    folder = out / "eval"
    folder.mkdir()
    draw = random.Random(f"swaps eval {options.seed}")
    drawn = (_problem(draw, draw.randint(1, options.most), options.people) for _ in itertools.count())
    parts: dict[str, Iterator[Problem]] = {"train": (one for one in drawn if not one.is_held_out)}
    for length in options.lengths:
        parts[f"steps_{length}"] = _held_out(draw, length, options.people)
    for name, problems in parts.items():
        rows = [_row(f"{name}-{at}", one, options) for at, one in enumerate(_different(problems, options.items))]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"drawn": True, "documents": dict.fromkeys(KINDS, options.documents)}


def documents(options: Options, kind: str) -> Iterator[Document]:
    """The documents of a kind; those of all kinds with one number hold the same problems."""
    for number in range(options.documents):
        draw = random.Random(f"swaps {options.seed} {number}")
        drawn = (_problem(draw, draw.randint(1, options.most), options.people) for _ in itertools.count())
        shown = itertools.islice((one for one in drawn if not one.is_held_out), options.problems)
        yield Document(f"{kind}-{number}", [segment for one in shown for segment in _segments(one, kind)])


def _segments(problem: Problem, kind: str) -> list[Text]:
    """A solved problem in the words of the tasks; loss stands on what a model has to write."""
    asked, steps, answer = f"Question: {problem.question}", f" {problem.rationale}", f" {problem.answer}\n"
    if kind == "answers":
        return [Text(f"{asked} Answer:", supervised=False), Text(answer)]
    written = [Text(f"{asked} Steps:", supervised=False), Text(steps + "\n" * (kind == "steps"))]
    return written if kind == "steps" else [*written, Text(" Answer:", supervised=False), Text(answer)]


def _problem(draw: random.Random, length: int, people: int) -> Problem:
    names = PEOPLE[:people]
    swaps = tuple((one, two) for one, two in (draw.sample(names, 2) for _ in range(length)))
    return Problem(draw.choice(names), swaps)


def _held_out(draw: random.Random, length: int, people: int) -> Iterator[Problem]:
    """Held-out problems of one length, without end."""
    while True:
        if (problem := _problem(draw, length, people)).is_held_out:
            yield problem


def _different(problems: Iterator[Problem], count: int) -> list[Problem]:
    """The first ``count`` that differ."""
    found: dict[Problem, None] = {}
    while len(found) < count:
        found[next(problems)] = None
    return list(found)


def _row(key: str, problem: Problem, options: Options) -> dict[str, Any]:
    asked = {"id": key, "question": problem.question, "rationale": problem.rationale, "answers": [problem.answer]}
    return {**asked, "candidates": list(PEOPLE[: options.people])}
