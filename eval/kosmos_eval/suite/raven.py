"""Raven-like matrices: which candidate completes the 3x3 grid? (KOSMOS-1, section 4.2 and table 6.)

Each row of a puzzle follows one rule an attribute (constant, progression, or three values in turn); the ninth cell is
the answer. The eight candidates are all combinations of the right and one wrong value of three attributes, as in
I-RAVEN (Hu et al. 2021): every value occurs equally often among them, so nothing can be guessed without the grid
(chance 1/8).

Differs from KOSMOS-1's IQ50 (50 items from websites, six candidates, chance 1/6), which is not freely available; the
protocol is the paper's: one prompt a candidate, the highest P("Yes") wins. Published RAVEN ``.npz`` files are read by
``source``.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64
ATTRIBUTES: dict[str, tuple[Any, ...]] = {
    "shape": ("triangle", "square", "pentagon", "hexagon", "circle"),
    "size": (0.35, 0.5, 0.65, 0.8, 0.95),
    "shade": (230, 180, 130, 80, 20),
    "count": (1, 2, 3, 4, 5),
}
RULES = ("constant", "progression", "three in turn")
_SIDES = {"triangle": 3, "square": 4, "pentagon": 5, "hexagon": 6, "circle": 48}
_COUNT_WORDS = {3: "three", 4: "four", 8: "eight"}

Cell = dict[str, int]  # attribute → index of its value


def make(out: Path, count: int, seed: int, source: Path | None) -> Iterator[dict[str, Any]]:
    """JSON lines of puzzles; images go to ``out/images``."""
    if source is not None:
        yield from _import_raven(out, count, source)
        return
    for number in range(count):
        rng = random.Random(f"raven {seed} {number}")
        grid, rules = puzzle(rng)
        options, right = candidates(grid[-1], rng)
        images = [draw(cell) for cell in [*grid[:8], *options]]
        yield _item(out, f"{number:04d}", images, right) | {"rules": " ".join(rules.values()), "group": _group(rules)}


def puzzle(rng: random.Random) -> tuple[list[Cell], dict[str, str]]:
    """Nine cells in reading order and the rule of each attribute; at least one rule is no constant."""
    while True:
        rules = {name: rng.choice(RULES) for name in ATTRIBUTES}
        if set(rules.values()) != {"constant"}:
            break
    columns = {name: _rows(rule, len(ATTRIBUTES[name]), rng) for name, rule in rules.items()}
    return [{name: columns[name][place] for name in ATTRIBUTES} for place in range(9)], rules


def _rows(rule: str, values: int, rng: random.Random) -> list[int]:
    """Value indices of one attribute over the nine cells."""
    if rule == "constant":
        return [value for value in rng.sample(range(values), 3) for _ in range(3)]
    if rule == "progression":
        step = rng.choice((1, -1))
        starts = rng.sample(range(values - 2), 3) if values - 2 >= 3 else [0, 0, 0]
        return [(start + i) if step > 0 else (start + 2 - i) for start in starts for i in range(3)]
    trio = rng.sample(range(values), 3)
    return [trio[(i + row) % 3] for row in range(3) for i in range(3)]


def candidates(answer: Cell, rng: random.Random) -> tuple[list[Cell], int]:
    """Eight cells, the answer among them, and its place."""
    changed = rng.sample(sorted(ATTRIBUTES), 3)
    wrong = {name: rng.choice([v for v in range(len(ATTRIBUTES[name])) if v != answer[name]]) for name in changed}
    options = [
        answer | {name: wrong[name] for name, use in zip(changed, choice, strict=True) if use}
        for choice in itertools.product((False, True), repeat=3)
    ]
    rng.shuffle(options)
    return options, options.index(answer)


def draw(cell: Cell) -> Image.Image:
    """A cell as a grey picture: ``count`` copies of a regular polygon."""
    shape, size, shade, count = (ATTRIBUTES[name][cell[name]] for name in ("shape", "size", "shade", "count"))
    picture = Image.new("L", (SIZE, SIZE), 255)
    pen = ImageDraw.Draw(picture)
    columns = 1 if count == 1 else 2 if count <= 4 else 3
    step = SIZE / columns
    for i in range(count):
        center = (step * (i % columns + 0.5), step * (i // columns + 0.5))
        pen.regular_polygon((*center, size * step / 2), _SIDES[shape], fill=shade, outline=0)
    return picture


def _group(rules: dict[str, str]) -> str:
    changing = sum(rule != "constant" for rule in rules.values())
    return f"{changing} rule{'s' * (changing > 1)}"


def _item(out: Path, name: str, images: list[Image.Image], right: int) -> dict[str, Any]:
    files = [f"{name}-{place:02d}.png" for place in range(len(images))]
    for file, image in zip(files, images, strict=True):
        image.save(out / "images" / file)
    given = len(images) - 8
    return {
        "id": name,
        "count": _COUNT_WORDS[given],
        "images": files[:given],
        "candidate_images": files[given:],
        "answers": [str(right + 1)],
    }


def _import_raven(out: Path, count: int, source: Path) -> Iterator[dict[str, Any]]:
    """RAVEN's own files: ``image`` (16, 160, 160) uint8, eight given and eight candidates, and ``target``."""
    files = sorted(source.rglob("*.npz"))[:count]
    if not files:
        raise ValueError(f"{source}: no .npz files of RAVEN below this folder")
    for file in files:
        with np.load(file, allow_pickle=False) as arrays:
            panels, target = arrays["image"], int(arrays["target"])
        if panels.shape[0] != 16 or panels.ndim != 3:
            raise ValueError(f"{file}: RAVEN holds 16 panels, found an array of shape {panels.shape}")
        name = "-".join(file.relative_to(source).with_suffix("").parts)
        yield _item(out, name, [Image.fromarray(panel.astype(np.uint8)) for panel in panels], target)
