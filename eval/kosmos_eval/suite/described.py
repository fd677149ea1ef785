"""Classes known from their description only (KOSMOS-1, section 4.9 and table 12).

Two made-up names are described in words ("A dax is a red thing with three sides …"), then the model says which of the
two the picture shows; ``category`` is the paper's "{general category}" of both. The task without descriptions
(``described_classes_plain``) is the paper's baseline and sits at chance, 1/2. Pictures come from an evaluation split
with captions, for example easy-VQA's.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import formats

_NAMES = ("dax", "wug", "blick", "toma", "fep", "zup", "kiv", "norp", "lorp", "mib")
_DESCRIPTIONS = {
    "triangle": "has three sides",
    "rectangle": "has four sides",
    "circle": "is round and has no corners",
}


def make(out: Path, count: int, seed: int, source: Path | None) -> Iterator[dict[str, Any]]:
    """JSON lines of two described classes and one picture each."""
    if source is None:
        raise ValueError("described_classes needs --source: an evaluation split with captions.json and images/")
    references = formats.read_caption_references(source / "captions.json")
    known = {
        image: tuple(captions[0].split()[1:])
        for image, captions in sorted(references.captions.items(), key=lambda entry: str(entry[0]))
        if len(captions[0].split()) == 3 and captions[0].split()[2] in _DESCRIPTIONS
    }
    if not known:
        raise ValueError(f"{source / 'captions.json'}: no captions of the form 'a red triangle'")
    rng = random.Random(f"described {seed}")
    for number, image in enumerate(rng.sample(list(known), min(count, len(known)))):
        file = references.file_names[image]
        shutil.copyfile(source / "images" / file, out / "images" / file)
        yield _item(number, file, known[image], rng)


def _item(number: int, file: str, thing: tuple[str, ...], rng: random.Random) -> dict[str, Any]:
    color, shape = thing
    other = rng.choice([name for name in _DESCRIPTIONS if name != shape])
    names = rng.sample(_NAMES, 2)
    classes = list(zip(names, (shape, other), strict=True))
    rng.shuffle(classes)
    text = " ".join(f"A {name} is a {color} thing that {_DESCRIPTIONS[kind]}." for name, kind in classes)
    return {
        "id": f"{number:05d}",
        "images": [file],
        "description": text,
        "category": "the shape",
        "candidates": [name for name, _ in classes],
        "answers": [names[0]],
    }
