"""Recipe ``episodes``: pictures and invented words, bound anew in every document, to learn from the prompt alone.

    OUT/names            shards: a picture and its own name, for ``kosmos vision``
    OUT/words            shards: a string of invented words, again and again
    OUT/bindings         shards: pictures, each followed by the word that it has in this document
    OUT/eval/test.jsonl  questions with eight demonstrations each, pictures and words that no binding of training has
    OUT/eval/seen.jsonl  the same with pictures and words of training
    OUT/eval/images/

No picture keeps its word from one document to the next, so nothing but the beginning of a document tells what comes
(Chan and others 2022, arXiv 2205.05055; Frozen, arXiv 2106.13884, section 4.2). What it does not tell yet, the first
word of each picture and the first time of each string, is ``"supervised": false``: it would only teach to guess. A
picture is mirrored, turned, zoomed and shifted each time. Words of the questions occur in ``words`` only, where their
embeddings are learnt, and copying with them (Olsson and others 2022, arXiv 2209.11895: induction heads). ``kosmos
eval`` has the task ``picture_binding``.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import Progress

from ..document import Document, Image, Text
from . import pictures
from .evaluation_files import write_lines
from .picture_sources import Named
from .picture_variants import variant
from .splits import split, write_parts

CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
SHOTS = 8
"""Demonstrations of a question."""


@dataclass
class Options:
    """What ``episodes`` writes.

    Args:
        collections: which of emoji, stamps, clipart.
        held_out_every: one base name in this many is kept for the questions.
        image_side: shorter side of the stored pictures in pixels.
        variants: so many changed copies of each picture, two at least; documents draw from them.
        documents: of ``bindings`` and of ``words``, each.
        places: pictures of a document of ``bindings``.
        fewest, most: so many different things has a document, drawn for each.
        string: words of a document of ``words``; between a quarter and half of them are different.
        choices: things of a question.
        words, held_out_words: invented words of one piece each; those of the questions.
        questions: of each file.
        documents_per_shard: documents in a tar.
        seed: of everything that is drawn.
        cache: folder for fetched packages; default $KOSMOS_CACHE, else ~/.cache/kosmos.
    """

    collections: list[str] = field(default_factory=lambda: ["emoji"])
    held_out_every: int = 8
    image_side: int = 32
    variants: int = 6
    documents: int = 8000
    places: int = 14
    fewest: int = 2
    most: int = 8
    string: int = 56
    choices: int = 4
    words: int = 96
    held_out_words: int = 32
    questions: int = 300
    documents_per_shard: int = 2000
    seed: int = 0
    cache: str = ""


@dataclass(frozen=True)
class Shown:
    """A thing and its pictures, as PNG.

    Args:
        named: what it is called.
        variants: the same picture, changed a little each time.
    """

    named: Named
    variants: Sequence[bytes]


def build(out: Path, options: Options, progress: Progress) -> dict[str, Any]:
    """Write the whole corpus below ``out``; return counts for the report.

    Raises:
        PackageUnavailable: a collection cannot be fetched; nothing is written then.
        ValueError: fewer things or words than a document needs, or one variant.
    """
    if options.variants < 2:
        raise ValueError(
            f"variants={options.variants}: a question shows a thing in other variants than the one it asks"
        )
    report: dict[str, Any] = {}
    collected = pictures.Options(collections=options.collections, image_side=options.image_side, cache=options.cache)
    with tempfile.TemporaryDirectory(prefix="kosmos-episodes-") as scratch:
        named = pictures.collected(collected, Path(scratch), progress, report)
        shown = [show(one, options.variants) for one in progress.track(named, description="change pictures")]
    train, test = split(shown, lambda one: one.named.base_name, options.held_out_every)
    words = invented(options.words + options.held_out_words, options.seed)
    known, new = words[: options.words], words[options.words :]
    for name, found in (("things of training", train), ("held-out things", test), ("words", known), ("new words", new)):
        if len(found) < (needed := max(options.most, options.choices)):
            raise ValueError(
                f"{len(found)} {name}, but {needed} are bound at a time (most, choices); lower it or add some"
            )
    makers = {
        "names": names(train),
        "words": strings(words, options),
        "bindings": bindings(train, known, options),
    }
    write_parts(out, makers, options.documents_per_shard, report["documents"], progress, may_be_empty=False)
    for name, part, spoken in (("test", test, new), ("seen", train, known)):
        report[f"{name}_questions"] = write_questions(out / "eval", name, part, spoken, options)
        report[f"{name}_things"], report[f"{name}_words"] = len(part), len(spoken)
    return report


def show(named: Named, count: int) -> Shown:
    """Read a thing's picture and change it ``count`` times."""
    data = named.path.read_bytes()
    return Shown(named, [variant(data, f"{named.key} {number}") for number in range(count)])


def invented(count: int, seed: int) -> list[str]:
    """Return different words of two open syllables and a consonant: ``zopil``.

    Raises:
        ValueError: there are not so many.
    """
    every = [a + x + b + y + c for a in CONSONANTS for x in VOWELS for b in CONSONANTS for y in VOWELS for c in "klnrs"]
    if count > len(every):
        raise ValueError(f"words and held_out_words are {count} together; there are {len(every)}")
    return random.Random(f"words {seed}").sample(every, count)


def names(things: Sequence[Shown]) -> Iterator[Document]:
    """Each variant of each thing with the thing's own name."""
    for thing in things:
        for number, data in enumerate(thing.variants):
            yield Document(f"{thing.named.key}-{number}", [Image(data), Text(thing.named.phrase)])


def bindings(things: Sequence[Shown], words: Sequence[str], options: Options) -> Iterator[Document]:
    """Every thing of a document once, in random order, then whichever is drawn, each with its word in this document."""
    for number in range(options.documents):
        rng = random.Random(f"bindings {options.seed} {number}")
        ways = rng.randint(options.fewest, min(options.most, options.places - 1))
        drawn, spoken = rng.sample(things, ways), rng.sample(words, ways)
        order = [*range(ways), *rng.choices(range(ways), k=options.places - ways)]
        segments: list[Image | Text] = []
        for place, (which, data) in enumerate(picture_row(drawn, order, rng)):
            segments += [Image(data), Text(spoken[which], supervised=place >= ways)]
        yield Document(f"binding/{number:06d}", segments)


def picture_row(things: Sequence[Shown], order: Sequence[int], rng: random.Random) -> list[tuple[int, bytes]]:
    """Which thing each place shows, and the variant of its picture; none twice as long as there are enough."""
    waiting: dict[int, list[bytes]] = {which: [] for which in range(len(things))}
    row = []
    for which in order:
        if not waiting[which]:
            waiting[which] = rng.sample(things[which].variants, len(things[which].variants))
        row.append((which, waiting[which].pop()))
    return row


def strings(words: Sequence[str], options: Options) -> Iterator[Document]:
    """A string of different words, repeated: the text on which copying is learnt."""
    for number in range(options.documents):
        rng = random.Random(f"words {options.seed} {number}")
        count = min(rng.randint(options.string // 4, options.string // 2), len(words))
        drawn = rng.sample(words, count)
        again = (drawn * (options.string // count))[: options.string - count]
        yield Document(f"words/{number:06d}", [Text(" ".join(drawn), supervised=False), Text(" ".join(again))])


def write_questions(folder: Path, name: str, things: Sequence[Shown], words: Sequence[str], options: Options) -> int:
    """Write ``NAME.jsonl`` and its pictures: which of the words that are shown does the last picture have?

    Demonstrations show each thing once, in random order, then each once more: neither the last word nor the commonest
    one is the better guess where all have been shown. Documents of training go on place by place: in rounds the
    words that are still to come in one would tell without a look at the picture. A thing's last variant is asked, the
    others are shown: an example with the picture of some question would be passed over as a leak.
    """
    asked = [Shown(thing.named, thing.variants[-1:]) for thing in things]
    shown = [Shown(thing.named, thing.variants[:-1]) for thing in things]
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(options.questions):
        rng = random.Random(f"{name} {options.seed} {number}")
        ways, which_things = range(options.choices), rng.sample(range(len(things)), options.choices)
        spoken = rng.sample(words, options.choices)
        rounds = [which for _ in range(0, SHOTS, options.choices) for which in rng.sample(ways, options.choices)]
        row = picture_row([shown[thing] for thing in which_things], rounds[:SHOTS], rng)
        row += picture_row([asked[thing] for thing in which_things], [rng.choice(ways)], rng)
        examples = [
            {"images": [_kept(folder, data, f"{name}-{number:04d}-{place}")], "answers": [spoken[which]]}
            for place, (which, data) in enumerate(row)
        ]
        question = examples.pop()
        candidates = rng.sample(spoken, len(spoken))
        rows.append({"id": f"{name}-{number:04d}", **question, "candidates": candidates, "demonstrations": examples})
    return write_lines(folder / f"{name}.jsonl", rows)


def _kept(folder: Path, data: bytes, name: str) -> str:
    (folder / "images" / f"{name}.png").write_bytes(data)
    return f"{name}.png"
