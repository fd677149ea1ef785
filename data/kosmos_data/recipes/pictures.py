"""Recipe ``pictures``: emoji, stamps and clip art with their names, keywords and captions.

    OUT/pairs                       shards: an image, then "An image of …", or the source's own words
    OUT/keywords                    shards: an image, then "Keywords: …"
    OUT/eval/train  OUT/eval/test   images/ captions.json (COCO): demonstrations, and pictures of held-out names

The split is by base name: every picture of a held-out thing, from whichever source, is in ``eval/test`` and nowhere
else. ``kosmos eval`` reads the result with the task ``easy_vqa_caption``, whose layout it shares.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import Progress

from kosmos.pictures import on_white

from ..document import Document, Image, Text
from ..errors import BadSample
from ..images import colour_range, open_image
from ..shards import write_shards
from .evaluation_files import write_coco
from .picture_sources import Collections, Named
from .splits import counted, held_out


@dataclass
class Options:
    """What ``pictures`` writes.

    Args:
        collections: which of emoji, stamps, clipart.
        languages: captions of the stamps in these languages besides English (``de``, ``pt_BR``, …), or ``all``.
        held_out_every: one base name in this many goes to ``eval/test``.
        min_side: pictures with a shorter side (in pixels) are left out.
        demonstrations: training pictures that are copied to ``eval/train`` for few-shot prompts.
        documents_per_shard: documents in a tar.
        strict: refuse other versions of the Debian packages than those that the recipe was written for.
        cache: folder for fetched packages; default $KOSMOS_CACHE, else ~/.cache/kosmos.
    """

    collections: list[str] = field(default_factory=lambda: ["emoji", "stamps", "clipart"])
    languages: list[str] = field(default_factory=list)
    held_out_every: int = 10
    min_side: int = 32
    demonstrations: int = 200
    documents_per_shard: int = 2000
    strict: bool = False
    cache: str = ""


def build(out: Path, options: Options, progress: Progress) -> dict[str, Any]:
    """Write the whole corpus below ``out``; return counts for the report."""
    collections = Collections(options.cache, options.strict, progress)
    pictures: list[Named] = []
    report: dict[str, Any] = {"pictures": {}, "left_out": {}, "documents": {}, "sources": collections.sources}
    hashes: set[bytes] = set()
    for name in options.collections:
        skipped: Counter[str] = Counter()
        named = progress.track(list(collections.read(name, skipped)), description=f"look at pictures: {name}")
        usable = [picture for picture in named if _usable(picture, options.min_side, hashes, skipped)]
        report["pictures"][name], report["left_out"][name] = len(usable), dict(skipped)
        pictures += usable
    train = [picture for picture in pictures if not held_out(picture.base_name, options.held_out_every)]
    test = [picture for picture in pictures if held_out(picture.base_name, options.held_out_every)]
    for name, documents in (("pairs", pairs(train, options.languages)), ("keywords", keywords(train))):
        passing = progress.track(counted(documents, report["documents"], name), description=f"shards: {name}")
        write_shards(out / name, passing, options.documents_per_shard)
    shown = sorted(train, key=lambda picture: hashlib.sha256(picture.key.encode()).digest())[: options.demonstrations]
    for name, part in (("train", shown), ("test", test)):
        report[f"eval_{name}_pictures"] = write_evaluation(out / "eval" / name, part)
    report["base_names"] = len({picture.base_name for picture in pictures})
    report["held_out_base_names"] = len({picture.base_name for picture in test})
    return report


def pairs(pictures: Iterable[Named], languages: Sequence[str]) -> Iterator[Document]:
    """Each picture twice, as "An image of …" and in its source's words, and once more for every language."""
    for picture in pictures:
        captions = {"0": f"An image of {picture.phrase}", "1": picture.caption}
        wanted = sorted(picture.translations) if "all" in languages else languages
        captions |= {name: picture.translations[name] for name in wanted if name in picture.translations}
        image = Image(picture.path.read_bytes())
        for name, caption in captions.items():
            language = "en" if name in "01" else name
            yield Document(f"{picture.key}-{name}", [image, Text(caption)], {"language": language})


def keywords(pictures: Iterable[Named]) -> Iterator[Document]:
    """Pictures that have two keywords or more."""
    for picture in pictures:
        if len(picture.keywords) > 1:
            words = Text(f"Keywords: {', '.join(picture.keywords)}")
            yield Document(picture.key, [Image(picture.path.read_bytes()), words])


def write_evaluation(folder: Path, pictures: Sequence[Named]) -> int:
    """Write ``images/`` and ``captions.json``: the phrase and, where it has other words, the caption as references."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for picture in pictures:
        data = picture.path.read_bytes()
        name = f"{picture.key.replace('/', '-')}{picture.path.suffix}"
        (folder / "images" / name).write_bytes(data)
        references = [picture.phrase]
        if _words(picture.caption) != _words(picture.phrase):
            references.append(picture.caption)
        rows.append((name, open_image(data).size, references))
    write_coco(folder / "captions.json", "pictures of emoji, stamps and clip art, by their names", rows)
    return len(rows)


def _words(caption: str) -> str:
    return caption.lower().rstrip(".!")


def _usable(picture: Named, min_side: int, hashes: set[bytes], skipped: Counter[str]) -> bool:
    """Counts what is too small, of one colour, broken, or the same file again."""
    data = picture.path.read_bytes()
    try:
        image = open_image(data)
    except BadSample as error:
        skipped[error.reason] += 1
        return False
    digest = hashlib.sha256(data).digest()
    if min(image.size) < min_side:
        skipped[f"smaller than {min_side} pixels"] += 1
    elif colour_range(on_white(image)) == 0:
        skipped["one colour"] += 1
    elif digest in hashes:
        skipped["same picture again"] += 1
    else:
        hashes.add(digest)
        return True
    return False
