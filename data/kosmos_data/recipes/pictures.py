"""Recipe ``pictures``: emoji, stamps and clip art with their names, keywords, captions, and questions about them.

    OUT/pairs                       shards: an image, then "An image of …", or the source's own words
    OUT/keywords                    shards: an image, then "Keywords: …": its group, then keywords, the commonest first
    OUT/qa                          shards: an image, then "Question: what is this? Answer: …" and the like
    OUT/eval/train  OUT/eval/test   demonstrations, and pictures of held-out names:
        images/  captions.json (COCO)  names.jsonl (which of eight names?)  vqa_questions.json  vqa_annotations.json

The split is by base name: every picture of a held-out thing, from whichever source, is in ``eval/test`` and nowhere
else. ``kosmos eval`` has the tasks ``picture_names``, ``picture_captions`` and ``picture_vqa`` for it.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import PIL.Image
from rich.progress import Progress

from kosmos.pictures import on_white, upright

from ..document import Document, Image, Text
from ..errors import BadSample
from ..images import colour_range, open_image
from . import picture_questions
from .evaluation_files import write_coco, write_lines, write_questions
from .picture_sources import Collections, Named
from .picture_variants import variant
from .splits import lot, split, write_parts

MOST_KEYWORDS, DESCRIBING_KEYWORDS = 4, 2
"""Keywords of a picture that are trained on, and those of a candidate's description."""


@dataclass
class Options:
    """What ``pictures`` writes.

    Args:
        collections: which of emoji, stamps, clipart.
        pictures: of each collection those with the smallest hashes, for a quick look; 0: all.
        languages: captions of the stamps in these languages besides English (``de``, ``pt_BR``, …), or ``all``.
        held_out_every: one base name in this many goes to ``eval/test``.
        min_side: pictures with a shorter side (in pixels) are left out.
        image_side: larger pictures are stored as PNG, on white, with this shorter side in pixels; 0: every picture as
            its source has it. A model that reads 64×64 gets the same pixels of a square picture, only faster.
        variants: so many documents of each picture in ``pairs`` and ``keywords``; the first shows it as it is, the
            others mirrored, turned, zoomed and shifted a little (:mod:`.picture_variants`).
        max_questions: questions of one picture per document of ``qa``, 1 to this many.
        demonstrations: training pictures that are copied to ``eval/train`` for few-shot prompts.
        documents_per_shard: documents in a tar.
        strict: refuse other versions of the Debian packages than those that the recipe was written for.
        cache: folder for fetched packages; default $KOSMOS_CACHE, else ~/.cache/kosmos.
    """

    collections: list[str] = field(default_factory=lambda: ["emoji", "stamps", "clipart"])
    pictures: int = 0
    languages: list[str] = field(default_factory=list)
    held_out_every: int = 10
    min_side: int = 32
    image_side: int = 0
    variants: int = 1
    max_questions: int = 3
    demonstrations: int = 200
    documents_per_shard: int = 2000
    strict: bool = False
    cache: str = ""


def build(out: Path, options: Options, progress: Progress) -> dict[str, Any]:
    """Write the whole corpus below ``out``; return counts for the report.

    Raises:
        PackageUnavailable: a collection cannot be fetched; nothing is written then.
    """
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="kosmos-pictures-") as scratch:
        pictures = collected(options, Path(scratch), progress, report)
        train, test = split(pictures, lambda picture: picture.base_name, options.held_out_every)
        _write(out, train, test, options, progress, report)
    report["base_names"] = len({picture.base_name for picture in pictures})
    report["held_out_base_names"] = len({picture.base_name for picture in test})
    return report


def collected(options: Options, scratch: Path, progress: Progress, report: dict[str, Any]) -> list[Named]:
    """The usable pictures of all collections, those that are stored smaller below ``scratch``."""
    collections = Collections(options.cache, options.strict, progress)
    pictures: list[Named] = []
    report |= {"pictures": {}, "left_out": {}, "documents": {}, "sources": collections.sources}
    hashes: set[bytes] = set()
    for name in options.collections:
        skipped: Counter[str] = Counter()
        found = list(collections.read(name, skipped))
        if options.pictures:
            found = sorted(found, key=lambda picture: lot(picture.key))[: options.pictures]
        named = progress.track(found, description=f"look at pictures: {name}")
        usable = [
            stored
            for picture in named
            if (stored := _stored(picture, options, scratch / f"{name}-{len(hashes)}.png", hashes, skipped))
        ]
        report["pictures"][name], report["left_out"][name] = len(usable), dict(skipped)
        pictures += usable
    return pictures


def _write(
    out: Path, train: list[Named], test: list[Named], options: Options, progress: Progress, report: dict[str, Any]
) -> None:
    makers = {
        "pairs": pairs(train, options.languages, options.variants),
        "keywords": keywords(train, options.variants),
        "qa": picture_questions.documents(train, options.max_questions),
    }
    write_parts(out, makers, options.documents_per_shard, report["documents"], progress)
    frequency = Counter(word for picture in train for word in set(picture.keywords))
    shown = sorted(train, key=lambda picture: lot(picture.key))[: options.demonstrations]
    for name, part in (("train", shown), ("test", test)):
        counts = write_evaluation(out / "eval" / name, part, frequency)
        report |= {f"eval_{name}_{what}": count for what, count in counts.items()}


def pairs(pictures: Iterable[Named], languages: Sequence[str], variants: int = 1) -> Iterator[Document]:
    """Each picture twice, as "An image of …" and in its source's words, and once more for every language."""
    for picture in pictures:
        captions = {"0": f"An image of {picture.phrase}", "1": picture.caption}
        wanted = sorted(picture.translations) if "all" in languages else languages
        captions |= {name: picture.translations[name] for name in wanted if name in picture.translations}
        for suffix, image in _shown(picture, variants):
            for name, caption in captions.items():
                language = "en" if name in "01" else name
                yield Document(f"{picture.key}-{name}{suffix}", [image, Text(caption)], {"language": language})


def keywords(pictures: Sequence[Named], variants: int = 1) -> Iterator[Document]:
    """Pictures that have two keywords or more."""
    frequency = Counter(word for picture in pictures for word in set(picture.keywords))
    for picture in pictures:
        if len(picture.keywords) > 1:
            words = Text(f"Keywords: {describe(picture, frequency, MOST_KEYWORDS)}")
            for suffix, image in _shown(picture, variants):
                yield Document(f"{picture.key}{suffix}", [image, words])


def describe(picture: Named, frequency: Mapping[str, int], most: int) -> str:
    """Its group, where it has one, and at most so many keywords, the commonest of the training pictures first.

    From the general to the special: each word narrows down what those before it have left open.
    """
    ranked = sorted(dict.fromkeys(picture.keywords), key=lambda word: (-frequency[word], word))
    return ", ".join([*([picture.group] if picture.group else []), *ranked[:most]])


def _shown(picture: Named, variants: int) -> Iterator[tuple[str, Image]]:
    """The picture as it is, then changed a little: (end of the document's key, image)."""
    data = picture.path.read_bytes()
    yield "", Image(data)
    for number in range(1, variants):
        yield f"-v{number}", Image(variant(data, f"{picture.key} {number}"))


def write_evaluation(folder: Path, pictures: Sequence[Named], frequency: Mapping[str, int]) -> dict[str, int]:
    """Write the pictures, and captions, choices and questions about them; return how many there are of each.

    A picture's captions are its phrase and, where the source has other words, those as well. ``frequency`` counts the
    keywords of the training pictures, for the descriptions of the choices.
    """
    (folder / "images").mkdir(parents=True)
    names, rows = [], []
    for picture in pictures:
        data = picture.path.read_bytes()
        names.append(f"{picture.key.replace('/', '-')}{picture.path.suffix}")
        (folder / "images" / names[-1]).write_bytes(data)
        references = [picture.phrase]
        if _words(picture.caption) != _words(picture.phrase):
            references.append(picture.caption)
        rows.append((names[-1], open_image(data).size, references))
    description = "pictures of emoji, stamps and clip art, by their names"
    write_coco(folder / "captions.json", description, rows)
    asked = zip(range(1, len(names) + 1), names, picture_questions.ask(pictures), strict=True)
    questions = write_questions(folder, description, asked)
    return {
        "pictures": len(rows),
        "choices": _write_choices(folder, pictures, names, frequency),
        "questions": questions,
    }


def _write_choices(folder: Path, pictures: Sequence[Named], names: Sequence[str], frequency: Mapping[str, int]) -> int:
    """Write ``names.jsonl``, the candidates of task ``picture_names``, and their descriptions where all have one.

    Where all pictures have one name there is no choice.
    """
    chosen = picture_questions.choices(pictures)
    described = {picture.phrase: describe(picture, frequency, DESCRIBING_KEYWORDS) for picture in reversed(pictures)}
    rows = [
        {"id": picture.key, "images": [name], "answers": [picture.phrase], "candidates": list(candidates)}
        | ({"wordings": words} if all(words := [described[name] for name in candidates]) else {})
        | ({"group": picture.group} if picture.group else {})
        for picture, name, candidates in zip(pictures, names, chosen, strict=True)
        if len(candidates) > 1
    ]
    return write_lines(folder / "names.jsonl", rows)


def _words(caption: str) -> str:
    return caption.lower().rstrip(".!")


def _stored(picture: Named, options: Options, path: Path, hashes: set[bytes], skipped: Counter[str]) -> Named | None:
    """The picture as it is stored, written to ``path`` if that is smaller than its file; None, and counted by reason,
    if it is too small, of one colour, broken, or the same picture again."""
    data = picture.path.read_bytes()
    try:
        image = open_image(data)
    except BadSample as error:
        skipped[error.reason] += 1
        return None
    short, shown = min(image.size), on_white(upright(image))
    if 0 < options.image_side < short:
        width, height = (round(side * options.image_side / short) for side in shown.size)
        shown = shown.resize((width, height), PIL.Image.Resampling.BICUBIC)
        shown.save(path)
        data, picture = path.read_bytes(), replace(picture, path=path)
    digest = hashlib.sha256(data).digest()
    if short < options.min_side:
        skipped[f"smaller than {options.min_side} pixels"] += 1
    elif colour_range(shown) == 0:
        skipped["one colour"] += 1
    elif digest in hashes:
        skipped["same picture again"] += 1
    else:
        hashes.add(digest)
        return picture
    return None
