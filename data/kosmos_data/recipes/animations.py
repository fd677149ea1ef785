"""Recipe ``animations``: Fluent emoji that move (npm, MIT) with their names; choices among held-out names.

    OUT/pairs                       shards: an animation, then "An image of red apple"
    OUT/eval/train  OUT/eval/test   animations/  stills/  names.jsonl, stills.jsonl: which of eight names?

Names and split are those of the recipe ``pictures``: who was trained on its pictures has seen no picture of a held-out
name, moving or not. ``stills.jsonl`` asks the same of the still picture of the same emoji. ``kosmos eval`` has the
tasks ``animation_names`` and ``still_names`` for it.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import PIL.Image
from rich.progress import Progress

from ..document import Document, Text, Video
from . import packages, picture_questions
from .evaluation_files import write_lines
from .picture_sources import Collections, Named, emoji_code
from .splits import lot, split, write_parts

_NPM = {
    "@lobehub/fluent-emoji-anim-1": "4c03ac178c1eabf2e2a16dd498f3cc2b92dc30ec3466ae38fdc497d4774c99ea",
    "@lobehub/fluent-emoji-anim-2": "e431da8172e394036c330faa77648d6fbbae1fd3b0be95637c4497c9075019c0",
    "@lobehub/fluent-emoji-anim-3": "3624d0c34c819c1794b74ccf6ae9034adff7c4cb6318dd2a645145f0196feb43",
    "@lobehub/fluent-emoji-anim-4": "3d4c08f1e321f70808ef4996aba0ab575a9d97b6c56ffffc92cf6161a7836aa3",
}
_VERSION = "1.0.0"


@dataclass
class Options:
    """What ``animations`` writes.

    Args:
        parts: which of the four packages of 165 to 197 MB.
        held_out_every: one base name in this many goes to ``eval/test``, as in ``pictures``.
        demonstrations: training animations that are copied to ``eval/train``.
        documents_per_shard: documents in a tar.
        cache: folder for fetched packages; default $KOSMOS_CACHE, else ~/.cache/kosmos.
    """

    parts: list[int] = field(default_factory=lambda: [1, 2, 3, 4])
    held_out_every: int = 10
    demonstrations: int = 32
    documents_per_shard: int = 200
    cache: str = ""


@dataclass(frozen=True, slots=True)
class Moving:
    """An animation and the still picture of the same emoji, by whose name it goes."""

    path: Path
    still: Named


def build(out: Path, options: Options, progress: Progress) -> dict[str, Any]:
    """Write the whole corpus below ``out``; return counts for the report.

    Raises:
        PackageUnavailable: a package cannot be fetched; nothing is written then.
        ValueError: there is no such part.
    """
    if unknown := [part for part in options.parts if not 1 <= part <= len(_NPM)]:
        raise ValueError(f"parts has {unknown[0]}; there are 1 to {len(_NPM)}")
    collections, skipped = Collections(options.cache, False, progress), Counter[str]()
    stills = {emoji_code(picture.path.stem): picture for picture in collections.read("emoji", Counter())}
    folders = [_fetched(list(_NPM)[part - 1], options.cache, progress) for part in options.parts]
    found = list(progress.track(moving(folders, stills, skipped), description="look at animations"))
    train, test = split(found, lambda one: one.still.base_name, options.held_out_every)
    report: dict[str, Any] = {"animations": len(found), "left_out": dict(skipped), "documents": {}}
    report["sources"] = collections.sources + [packages.describe(folder) for folder in folders]
    write_parts(out, {"pairs": pairs(train)}, options.documents_per_shard, report["documents"], progress)
    shown = sorted(train, key=lambda one: lot(one.still.key))[: options.demonstrations]
    for name, part in (("train", shown), ("test", test)):
        report[f"eval_{name}"] = write_evaluation(out / "eval" / name, part)
    return report


def _fetched(name: str, cache: str, progress: Progress) -> Path:
    return packages.npm(name, _VERSION, cache, sha256=_NPM[name], progress=progress)


def moving(folders: Sequence[Path], stills: dict[str, Named], skipped: Counter[str]) -> Iterator[Moving]:
    """Emoji that move and have a still picture with a name, by file; ``skipped`` counts the others by reason."""
    seen: set[str] = set()
    files = [path for folder in folders for path in (folder / "assets").glob("*.webp")]
    for path in sorted(files, key=lambda path: path.name):
        code = emoji_code(path.stem)
        if code not in stills:
            skipped["no still picture with a name (skin tones, flags)"] += 1
        elif getattr(PIL.Image.open(io.BytesIO(path.read_bytes())), "n_frames", 1) < 2:
            skipped["does not move"] += 1
        elif code in seen:
            skipped["another file of one emoji"] += 1
        else:
            seen.add(code)
            yield Moving(path, stills[code])


def pairs(found: Sequence[Moving]) -> Iterator[Document]:
    """Each animation with its name."""
    for one in found:
        yield Document(one.still.key, [Video(one.path.read_bytes()), Text(f"An image of {one.still.phrase}")])


def write_evaluation(folder: Path, found: Sequence[Moving]) -> int:
    """Write animations, stills, and which of eight names each has; return how many there are."""
    for kind in ("animations", "stills"):
        (folder / kind).mkdir(parents=True)
    moved: list[dict[str, Any]] = []
    still: list[dict[str, Any]] = []
    chosen = picture_questions.choices([one.still for one in found])
    for one, candidates in zip(found, chosen, strict=True):
        if len(candidates) < 2:
            continue
        asked = {"id": one.still.key, "answers": [one.still.phrase], "candidates": list(candidates)}
        for rows, kind, path in ((moved, "animations", one.path), (still, "stills", one.still.path)):
            (folder / kind / path.name).write_bytes(path.read_bytes())
            rows.append(asked | {"files": [path.name]})
    write_lines(folder / "stills.jsonl", still)
    return write_lines(folder / "names.jsonl", moved)
