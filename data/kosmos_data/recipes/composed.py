"""Recipe ``composed``: pictures put together of emoji, and whether a model sees which stands where and how many.

    OUT/pairs      shards: two things in one picture, then "An image of cat face to the left of key"
    OUT/counts     shards: several of two things, then a question how many there are, and of which there are more
    OUT/eval/test  pairs.jsonl  counts.jsonl  more.jsonl  images/: combinations that training never has
    OUT/eval/seen  the same with combinations of training, in new pictures

The split is systematic: every thing, every relation and every number occurs in training, but not these two things
together, and not this many of this thing. Whoever has learnt the parts can answer ``test``; whoever has learnt whole
pictures answers ``seen`` only. Of the two sentences of a pair, one is the other with its things exchanged (as in
Winoground, arXiv 2204.03162), and each picture has a counterpart for which the other one is right, so that words alone
get one half. Each question stands there in several wordings, which are the groups of the scores.
"""

from __future__ import annotations

import io
import itertools
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image as Picture
from rich.progress import Progress

from kosmos.pictures import on_white, open_picture

from ..document import Document, Image, Text
from . import pictures
from .evaluation_files import write_lines
from .picture_sources import Named
from .splits import held_out, lot, write_parts

RELATIONS = (("to the left of", "to the right of"), ("above", "below"))
"""Side by side, and one over the other: how the first thing stands to the second, and the second to the first."""

HOW_MANY = ("how many {one} are there?", "what is the number of {one}?", "count the {one}.")
MORE = ("are there more {one} than {other}?", "are there fewer {other} than {one}?")
CELLS = 3
"""Cells of a side of a picture in which things are counted, one thing in each at most."""


@dataclass
class Options:
    """What ``composed`` writes.

    Args:
        collections: which of emoji, stamps, clipart.
        things: how many of their pictures are used.
        documents: of ``pairs`` and of ``counts``, each.
        most: of one thing in a picture.
        held_out_every: one combination in this many is kept for the test.
        questions: of each evaluation file at most.
        side: of a picture, in pixels.
        documents_per_shard: documents in a tar.
        seed: of everything that is drawn.
        cache: folder for fetched packages; default $KOSMOS_CACHE, else ~/.cache/kosmos.
    """

    collections: list[str] = field(default_factory=lambda: ["emoji"])
    things: int = 40
    documents: int = 6000
    most: int = 5
    held_out_every: int = 5
    questions: int = 1200
    side: int = 64
    documents_per_shard: int = 2000
    seed: int = 0
    cache: str = ""

    def __post_init__(self) -> None:
        if not 2 <= self.most <= CELLS**2 // 2 + 1:
            raise ValueError(f"most={self.most} must be from 2 to {CELLS**2 // 2 + 1}, for so many have room")
        if self.things < 4 or self.held_out_every < 2 or self.side < 24:
            raise ValueError(
                f"things={self.things}, held_out_every={self.held_out_every}, side={self.side} must be at least 4, 2 "
                "and 24"
            )


@dataclass(frozen=True)
class Thing:
    """What is put into pictures: its name, what the split knows it by, and its picture."""

    name: str
    base: str
    picture: Picture.Image


def build(out: Path, options: Options, progress: Progress) -> dict[str, Any]:
    """Write the whole corpus below ``out``; return counts for the report.

    Raises:
        PackageUnavailable: a collection cannot be fetched; nothing is written then.
        ValueError: fewer things than are wanted, or none of their combinations on one side of the split.
    """
    report: dict[str, Any] = {}
    wanted = pictures.Options(collections=options.collections, image_side=options.side, cache=options.cache)
    with tempfile.TemporaryDirectory(prefix="kosmos-composed-") as scratch:
        things = chosen(pictures.collected(wanted, Path(scratch), progress, report), options.things)
    split = Split(things, options)
    makers = {"pairs": _pair_documents(split), "counts": _count_documents(split)}
    per_shard, counts = options.documents_per_shard, report["documents"]
    write_parts(out, makers, per_shard, counts, progress, may_be_empty=False, total=options.documents)
    for name, is_test in (("test", True), ("seen", False)):
        report[name] = write_evaluation(out / "eval" / name, split, is_test)
    return report


def chosen(named: Sequence[Named], count: int) -> list[Thing]:
    """So many things of different base names, by hash, as they look on white."""
    first = {one.base_name: one for one in sorted(named, key=lambda one: lot(one.key))}
    if len(first) < count:
        raise ValueError(f"things={count}, but the collections have {len(first)} of different names; lower it")
    found = sorted(first.values(), key=lambda one: lot(one.key))[:count]
    return [Thing(one.phrase, one.base_name, on_white(open_picture(one.path)).copy()) for one in found]


class Split:
    """Which combinations are tested and which are trained on.

    Attributes:
        pairs: two things, by whether they are tested together.
        amounts: a thing and how many of it, by whether that is tested.
    """

    def __init__(self, things: Sequence[Thing], options: Options) -> None:
        self.options = options
        self.pairs: dict[bool, list[tuple[Thing, Thing]]] = {True: [], False: []}
        self.amounts: dict[bool, list[tuple[Thing, int]]] = {True: [], False: []}
        for one, other in itertools.combinations(things, 2):
            together = " and ".join(sorted((one.base, other.base)))
            self.pairs[held_out(together, options.held_out_every)].append((one, other))
        for thing, number in itertools.product(things, range(1, options.most + 1)):
            self.amounts[held_out(f"{number} {thing.base}", options.held_out_every)].append((thing, number))
        for what, parts in (("pairs of things", self.pairs), ("numbers of things", self.amounts)):
            if not all(parts.values()):
                raise ValueError(f"all {what} fall on one side of the split; raise things, or change held_out_every")

    def beside(self, thing: Thing, number: int, rng: random.Random) -> tuple[Thing, int]:
        """Another thing in another number, which training has, for a picture with so many of ``thing``."""
        fitting = [(one, count) for one, count in self.amounts[False] if one is not thing and count != number]
        if not fitting:
            raise ValueError(f"no other thing is trained on in another number than {number}; raise things or most")
        return rng.choice(fitting)


def compose_pair(first: Thing, second: Thing, is_upright: bool, side: int, rng: random.Random) -> bytes:
    """A PNG of two things anywhere in their halves: the first on the left, or above."""
    canvas = Picture.new("RGB", (side, side), "white")
    for thing, half in ((first, 0), (second, 1)):
        size = rng.randint(round(0.35 * side), side // 2)
        along = half * (side // 2) + rng.randint(0, side // 2 - size)
        across = rng.randint(0, side - size)
        _put(canvas, thing, size, (across, along) if is_upright else (along, across))
    return _png(canvas)


def compose_counts(amounts: Sequence[tuple[Thing, int]], side: int, rng: random.Random) -> bytes:
    """A PNG with so many of each thing, each in a cell of its own."""
    canvas, cell = Picture.new("RGB", (side, side), "white"), side // CELLS
    shown = [thing for thing, number in amounts for _ in range(number)]
    for thing, place in zip(shown, rng.sample(range(CELLS**2), len(shown)), strict=True):
        size = rng.randint(round(0.75 * cell), cell)
        left, top = (cell * at + rng.randint(0, cell - size) for at in (place % CELLS, place // CELLS))
        _put(canvas, thing, size, (left, top))
    return _png(canvas)


def sentence(first: Thing, second: Thing, relation: tuple[str, str], turned: bool) -> str:
    """What is true of a picture of :func:`compose_pair`, said of the first thing, or (``turned``) of the second."""
    if turned:
        return f"{second.name} {relation[1]} {first.name}"
    return f"{first.name} {relation[0]} {second.name}"


def write_evaluation(folder: Path, split: Split, is_test: bool) -> dict[str, int]:
    """Write the three files of questions and their pictures; return how many questions each has."""
    (folder / "images").mkdir(parents=True)

    def keep(name: str, picture: bytes) -> str:
        (folder / "images" / f"{name}.png").write_bytes(picture)
        return f"{name}.png"

    most = split.options.questions
    counts, more = _count_questions(split, is_test, keep)
    files = {"pairs": list(_pair_questions(split, is_test, keep)), "counts": counts, "more": more}
    return {name: write_lines(folder / f"{name}.jsonl", rows[:most]) for name, rows in files.items()}


Keep = Callable[[str, bytes], str]


def _pair_questions(split: Split, is_test: bool, keep: Keep) -> Iterator[dict[str, Any]]:
    """Four pictures of each pair, and two ways to say what each shows: eight questions that only pictures answer."""
    rng = random.Random(f"pairs {split.options.seed} {is_test}")
    pairs = rng.sample(split.pairs[is_test], len(split.pairs[is_test]))
    for number, pair in enumerate(pairs[: split.options.questions // 8]):
        for upright, (first, second) in itertools.product((False, True), (pair, pair[::-1])):
            name = f"pair-{number:04d}-{'ba'[first is pair[0]]}{int(upright)}"
            image = keep(name, compose_pair(first, second, upright, split.options.side, rng))
            for turned in (False, True):
                right, wrong = (
                    sentence(*two, RELATIONS[upright], turned) for two in ((first, second), (second, first))
                )
                yield {"id": f"{name}-{int(turned)}", "images": [image], "answers": [right],
                       "candidates": rng.sample([right, wrong], 2), "group": RELATIONS[upright][turned]}  # fmt: skip


def _count_questions(split: Split, is_test: bool, keep: Keep) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """How many, in each wording, and of which there are more, each way round, of one picture after the other."""
    rng = random.Random(f"counts {split.options.seed} {is_test}")
    counts: list[dict[str, Any]] = []
    more: list[dict[str, Any]] = []
    numbers = [str(number) for number in range(1, split.options.most + 1)]
    for place, (thing, number) in enumerate(_amounts(split, is_test, rng)):
        other, others = split.beside(thing, number, rng)
        picture = compose_counts([(thing, number), (other, others)], split.options.side, rng)
        shown = {"images": [keep(f"count-{place:04d}", picture)]}
        for form, words in enumerate(HOW_MANY):
            row = {"id": f"{place:04d}-{form}", "question": words.format(one=thing.name), "group": _group(words)}
            counts.append(row | shown | {"answers": [str(number)], "candidates": numbers})
        for form, words in enumerate(MORE):
            for turned, (one, two) in enumerate(((thing, other), (other, thing))):
                question = words.format(one=one.name, other=two.name)
                row = {"id": f"{place:04d}-{form}{turned}", "question": question, "group": _group(words)}
                more.append(row | shown | {"answers": [_more(number, others, turned)], "candidates": ["yes", "no"]})
    return counts, more


def _group(words: str) -> str:
    return words.partition(" {")[0]


def _more(number: int, others: int, turned: bool | int) -> str:
    """Whether there are more of the first, or (``turned``) of the second."""
    return "yes" if (number > others) != bool(turned) else "no"


def _amounts(split: Split, is_test: bool, rng: random.Random) -> Iterator[tuple[Thing, int]]:
    """So many things in numbers as fill the longer file, each number about as often."""
    by_number: dict[int, list[tuple[Thing, int]]] = {}
    for one in split.amounts[is_test]:
        by_number.setdefault(one[1], []).append(one)
    for place in range(split.options.questions // len(HOW_MANY)):
        numbers = sorted(by_number)
        yield rng.choice(by_number[numbers[place % len(numbers)]])


def _pair_documents(split: Split) -> Iterator[Document]:
    for number in range(split.options.documents):
        rng = random.Random(f"pair {split.options.seed} {number}")
        first, second = rng.sample(rng.choice(split.pairs[False]), 2)
        upright, turned = rng.random() < 0.5, rng.random() < 0.5
        picture = compose_pair(first, second, upright, split.options.side, rng)
        words = f"An image of {sentence(first, second, RELATIONS[upright], turned)}"
        yield Document(f"pair/{number:06d}", [Image(picture), Text(words)])


def _count_documents(split: Split) -> Iterator[Document]:
    """A picture, how many of a thing it shows, and whether there are more of it; the loss is on the answers."""
    for number in range(split.options.documents):
        rng = random.Random(f"count {split.options.seed} {number}")
        thing, shown = rng.choice(split.amounts[False])
        other, others = split.beside(thing, shown, rng)
        picture = compose_counts([(thing, shown), (other, others)], split.options.side, rng)
        how_many = rng.choice(HOW_MANY).format(one=thing.name)
        turned = rng.random() < 0.5
        one, two = (other, thing) if turned else (thing, other)
        more = rng.choice(MORE).format(one=one.name, other=two.name)
        segments: list[Image | Text] = [
            Image(picture),
            Text(f"Question: {how_many} Answer:", supervised=False),
            Text(f" {shown}\n"),
            Text(f"Question: {more} Answer:", supervised=False),
            Text(f" {_more(shown, others, turned)}"),
        ]
        yield Document(f"count/{number:06d}", segments)


def _put(canvas: Picture.Image, thing: Thing, size: int, place: tuple[int, int]) -> None:
    """Draw a thing into a square of so many pixels, in its own proportions."""
    shown = thing.picture.copy()
    shown.thumbnail((size, size))
    canvas.paste(shown, place)


def _png(canvas: Picture.Image) -> bytes:
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG")
    return buffer.getvalue()
