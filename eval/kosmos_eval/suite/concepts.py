"""New words bound by demonstrations: does the model learn from its prompt at all?

Few-shot scores on a task that the model was trained on say little: it knows the task without being shown. Here each
item invents two words, gives each a colour (or a shape), and shows pictures with the right word; the question is
which of the two the last picture is called. Nothing but the demonstrations can tell: without them, or without a model
that learns in context, the score is one half. Source: "fast concept binding" of Frozen (Tsimpoukelli et al. 2021,
section 4.2); KOSMOS-1's own few-shot tasks (section 4.2) do not separate learning from knowing.

Each pair of demonstrations shows both words once, in random order, so that for an even number of them neither the more
frequent word nor the last one is the better guess. Demonstrations come from the training images, questions from the
test images.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import formats

MOST_DEMONSTRATIONS = 8
_WORDS = ("dax", "blicket", "wug", "toma", "fep", "zup", "kiv", "norp", "lorp", "mib")
_KINDS = ("color", "shape")

Pictures = list[tuple[tuple[str, str], str]]  # ((colour, shape), file), one for each image


def make(out: Path, count: int, seed: int, source: Path | None) -> Iterator[dict[str, Any]]:
    """JSON lines of items with their own demonstrations; images go to ``out/images`` as SPLIT-FILE."""
    if source is None:
        raise ValueError(
            "concept_binding needs --source: a folder with train/ and test/, each captions.json and images/"
        )
    train, test = (_pictures(source / split) for split in ("train", "test"))
    for number in range(count):
        rng = random.Random(f"concepts {seed} {number}")
        kind = rng.choice(_KINDS)
        item = _item(train, test, kind, rng)
        for shown in [item, *item["demonstrations"]]:
            shown["images"] = [_copied(source, shown.pop("split"), file, out) for file in shown["images"]]
        yield {"id": f"{number:05d}", "group": kind, **item}


def _pictures(folder: Path) -> Pictures:
    references = formats.read_caption_references(folder / "captions.json")
    found: Pictures = []
    for image, captions in sorted(references.captions.items(), key=lambda entry: str(entry[0])):
        words = captions[0].split()
        if len(words) == 3 and words[0] == "a":
            found.append(((words[1], words[2]), references.file_names[image]))
    if not found:
        raise ValueError(f"{folder / 'captions.json'}: no captions of the form 'a red triangle'")
    return found


def _item(train: Pictures, test: Pictures, kind: str, rng: random.Random) -> dict[str, Any]:
    place = _KINDS.index(kind)
    shared = sorted({thing[place] for thing, _ in train} & {thing[place] for thing, _ in test})
    if len(shared) < 2:
        raise ValueError(f"concept_binding needs two {kind}s that occur in train and in test; found {shared}")
    meanings = rng.sample(shared, 2)
    words = rng.sample(_WORDS, 2)
    demonstrations: list[dict[str, Any]] = []
    for _ in range(MOST_DEMONSTRATIONS // 2):
        for which in rng.sample((0, 1), 2):
            usable = [file for thing, file in train if thing[place] == meanings[which]]
            file = rng.choice(sorted(set(usable) - {one["images"][0] for one in demonstrations}) or usable)
            demonstrations.append({"images": [file], "answers": [words[which]], "split": "train"})
    which = rng.randrange(2)
    asked = rng.choice([file for thing, file in test if thing[place] == meanings[which]])
    candidates = rng.sample(words, 2)
    return {
        "images": [asked], "split": "test", "answers": [words[which]], "candidates": candidates,
        "meanings": ", ".join(f"{word} is {meaning}" for word, meaning in zip(words, meanings, strict=True)),
        "demonstrations": demonstrations,
    }  # fmt: skip


def _copied(source: Path, split: str, file: str, out: Path) -> str:
    name = f"{split}-{Path(file).name}"
    if not (out / "images" / name).exists():
        shutil.copyfile(source / split / "images" / file, out / "images" / name)
    return name
