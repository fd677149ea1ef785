"""Visual commonsense asked in words (KOSMOS-1, section 4.10 and table 16): sizes and colours of things.

The published sets (RelativeSize, MemoryColor, ColorTerms) have this form; the facts here are everyday ones, written
down for this project. No images: the question is what a model keeps of what it has seen.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# From small to large, each clearly larger than the one before.
_BY_SIZE = """\
grain of sand, ant, grape, egg, apple, cat, chair, horse, car, bus, house, mountain"""
_COLORS = {
    "banana": "yellow", "lemon": "yellow", "tomato": "red", "strawberry": "red", "blood": "red", "fire engine": "red",
    "grass": "green", "frog": "green", "cucumber": "green", "lime": "green", "clear sky": "blue", "sapphire": "blue",
    "snow": "white", "milk": "white", "swan": "white", "coal": "black", "raven": "black", "orange": "orange",
    "carrot": "orange", "pumpkin": "orange", "chocolate": "brown", "soil": "brown", "elephant": "gray",
    "flamingo": "pink", "eggplant": "purple",
}  # fmt: skip


def make_sizes(out: Path, count: int, seed: int, source: Path | None) -> Iterator[dict[str, Any]]:
    """Ordered pairs of things: is the first larger than the second? A quarter are demonstrations."""
    _no_source(source)
    things = _BY_SIZE.split(", ")
    pairs = list(itertools.permutations(range(len(things)), 2))
    random.Random(f"sizes {seed}").shuffle(pairs)
    for number, (first, second) in enumerate(pairs):
        split = "train" if number % 4 == 0 else "test"
        if split == "train" or number < count:
            fields = {"first": things[first], "second": things[second]}
            yield {"id": f"{first}-{second}", "split": split, **fields, "answers": ["Yes" if first > second else "No"]}


def make_colors(out: Path, count: int, seed: int, source: Path | None) -> Iterator[dict[str, Any]]:
    """The colour of each thing."""
    _no_source(source)
    for thing, color in list(_COLORS.items())[:count]:
        yield {"id": thing, "object": thing, "answers": [color]}


def _no_source(source: Path | None) -> None:
    if source is not None:
        raise ValueError("this part is made here; bring published files into JSON lines and use the task YAML directly")
