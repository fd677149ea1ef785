"""Recipe ``sounds``: names read aloud in nine languages, and sounds of animals and things, of Tux Paint's stamps.

    OUT/names                shards: a recording, then "Question: what is said? Answer: una rana"
    OUT/languages            shards: the same recordings, "Question: which language is it? Answer: Spanish"
    OUT/sounds               shards: a sound, then "Question: what is heard? Answer: a cow"; few, nothing is held out
    OUT/eval/test            recordings of names that training never has:
        sounds/  names.jsonl (which of eight names is said?)  languages.jsonl (in which of the languages?)

The split is by thing: in no language does training have the name of a held-out one. The eight names are of one
language and of like length, and each is right once: how long a recording is says next to nothing, and who does not
listen gets one in eight. ``kosmos eval`` has the tasks ``spoken_names`` and ``spoken_languages``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import Progress

from ..document import Audio, Document
from ..turns import turn
from . import packages
from .evaluation_files import write_lines
from .picture_sources import stamps_package
from .sound_sources import LANGUAGES, SOUND, Recording, recordings
from .sound_variants import variant
from .splits import lot, split, write_parts

SAID, SPOKEN, HEARD = "what is said?", "which language is it?", "what is heard?"
CHOICES = 8


@dataclass
class Options:
    """What ``sounds`` writes.

    Args:
        languages: of the names, by code; all have one voice or two.
        held_out_every: one thing in this many goes to ``eval/test``.
        max_seconds: longer recordings are left out; what the encoder must be able to read at once.
        variants: so many documents of each recording in ``names``; the first has it as it is, the others are played
            faster or slower, louder or softer (:mod:`.sound_variants`).
        documents_per_shard: documents in a tar.
        strict: refuse another version of the Debian package than that which the recipe was written for.
        cache: folder for fetched packages; default $KOSMOS_CACHE, else ~/.cache/kosmos.
    """

    languages: list[str] = field(default_factory=lambda: list(LANGUAGES))
    held_out_every: int = 8
    max_seconds: float = 2.4
    variants: int = 1
    documents_per_shard: int = 2000
    strict: bool = False
    cache: str = ""


def build(out: Path, options: Options, progress: Progress) -> dict[str, Any]:
    """Write the whole corpus below ``out``; return counts for the report.

    Raises:
        PackageUnavailable: the package cannot be fetched; nothing is written then.
        ValueError: a language without recordings.
    """
    files = stamps_package(options.cache, options.strict, progress)
    skipped: Counter[str] = Counter()
    found = recordings(files / "usr/share/tuxpaint/stamps", options.languages, options.max_seconds, skipped)
    usable = list(progress.track(found, description="listen to recordings"))
    spoken = [one for one in usable if one.language != SOUND]
    train, test = split(spoken, lambda one: one.thing, options.held_out_every)
    unheard = {(one.language, one.words) for one in test}
    skipped["says a held-out name"] = sum((one.language, one.words) in unheard for one in train)
    train = [one for one in train if (one.language, one.words) not in unheard]
    report: dict[str, Any] = {"documents": {}, "sources": [packages.describe(files)]}
    _write(out, train, [one for one in usable if one.language == SOUND], options, progress, report["documents"])
    report |= write_evaluation(out / "eval/test", test, skipped)
    return report | {
        "recordings": dict(Counter(one.key.partition("/")[0] for one in usable)),
        "left_out": dict(skipped),
    }


def _write(
    out: Path, train: list[Recording], heard: list[Recording], options: Options, progress: Progress, count: Any
) -> None:
    """Write the three folders of shards."""
    names = {one.key: one.words for one in train}
    tongues = {one.key: LANGUAGES[one.language] for one in train}
    makers = {
        "names": documents(train, SAID, names, options.variants, options.max_seconds),
        "languages": documents(train, SPOKEN, tongues),
        "sounds": documents(heard, HEARD, {one.key: one.words for one in heard}),
    }
    write_parts(out, makers, options.documents_per_shard, count, progress)


def documents(
    found: Sequence[Recording], question: str, answers: dict[str, str], variants: int = 1, most_seconds: float = 0.0
) -> Iterator[Document]:
    """Each recording with a question and its answer, and so again for each of its variants."""
    for one in found:
        data, asked = one.path.read_bytes(), turn(question, answers[one.key], last=True)
        meta = {"language": one.language} if one.language else {}
        yield Document(one.key, [Audio(data), *asked], meta)
        for number in range(1, variants):
            changed = variant(data, f"{one.key} {number}", most_seconds)
            yield Document(f"{one.key}-v{number}", [Audio(changed), *asked], meta)


def write_evaluation(folder: Path, test: Sequence[Recording], skipped: Counter[str]) -> dict[str, int]:
    """Write the recordings of held-out names, and choices about them; return how many there are of each."""
    (folder / "sounds").mkdir(parents=True)
    names, tongues = [], []
    known = sorted({LANGUAGES[one.language] for one in test})
    for one, candidates in choices(test, skipped):
        file = f"{one.key.replace('/', '-')}{one.path.suffix}"
        (folder / "sounds" / file).write_bytes(one.path.read_bytes())
        item = {"id": one.key, "files": [file], "group": LANGUAGES[one.language]}
        names.append({**item, "answers": [one.words], "candidates": list(candidates)})
        tongues.append({**item, "answers": [LANGUAGES[one.language]], "candidates": known})
    counts = {"eval_names": write_lines(folder / "names.jsonl", names)}
    if len(known) > 1:  # of one language there is no choice
        counts["eval_languages"] = write_lines(folder / "languages.jsonl", tongues)
    return counts


def choices(test: Sequence[Recording], skipped: Counter[str]) -> Iterator[tuple[Recording, tuple[str, ...]]]:
    """Each recording with eight names of its language that are about as long, in alphabetical order.

    The names of a language, by their length, are cut into eights, and each of the eight is asked about once.
    """
    for language in sorted({one.language for one in test}):
        by_name: dict[str, Recording] = {}
        for one in sorted((one for one in test if one.language == language), key=lambda one: lot(one.key)):
            skipped["held-out name said again"] += one.words in by_name
            by_name.setdefault(one.words, one)
        ordered = sorted(by_name, key=lambda words: (len(words), lot(by_name[words].key)))
        whole = len(ordered) // CHOICES * CHOICES
        skipped["held-out name without seven others as long"] += len(ordered) - whole
        for start in range(0, whole, CHOICES):
            names = ordered[start : start + CHOICES]
            yield from ((by_name[words], tuple(sorted(names))) for words in names)
