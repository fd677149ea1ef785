"""Questions about a web page, from its screenshot and its text (KOSMOS-1, section 4.5: WebSRC).

Here a page is a table of properties drawn like a shop's product page. Run the task with contexts ``image+text``,
``text-only`` (a language model's view) and with ``--set`` a prompt without ``{page}`` (pixels only) for the paper's
three rows.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .rendered import render

_FIRST = ("Ada", "Ben", "Cora", "Dan", "Eve", "Finn", "Gus", "Hal", "Ida", "Jon")
_LAST = ("Moss", "Reed", "Stone", "Lake", "Hill", "Ford", "Wood", "Marsh", "Bell", "Cook")
_HOUSES = ("Penguin Books", "Red Door", "Blue Lamp", "North Star", "Old Mill", "Green Leaf")
_TITLES = ("The Lost Key", "A Long Road", "Night Train", "The Glass Boat", "Winter Song", "Two Bridges")
_QUESTIONS = {
    "author": "Who is the author of this book?",
    "publisher": "Who is the publisher of this book?",
    "pages": "How many pages does this book have?",
    "price": "What is the price of this book?",
}


def make(out: Path, count: int, seed: int, source: Path | None) -> Iterator[dict[str, Any]]:
    """JSON lines of one question a page; screenshots go to ``out/images``."""
    if source is not None:
        raise ValueError(
            "webpages are made here; bring WebSRC into JSON lines with fields question, page, images, answers"
        )
    for number in range(count):
        rng = random.Random(f"webpages {seed} {number}")
        facts = {
            "title": rng.choice(_TITLES),
            "author": f"{rng.choice(_FIRST)} {rng.choice(_LAST)}",
            "publisher": rng.choice(_HOUSES),
            "pages": str(rng.randrange(80, 900)),
            "price": f"${rng.randrange(3, 60)}.{rng.randrange(100):02d}",
        }
        lines = [f"{name}: {value}" for name, value in facts.items()]
        asked = rng.choice(list(_QUESTIONS))
        file = f"{number:05d}.png"
        render("\n".join(lines)).save(out / "images" / file)
        yield {
            "id": f"{number:05d}",
            "images": [file],
            "page": ", ".join(lines),
            "question": _QUESTIONS[asked],
            "answers": [facts[asked]],
            "group": asked,
        }
