"""Questions about a web page, from its screenshot and its text (KOSMOS-1, section 4.5: WebSRC).

Here a page is a table of properties drawn like a shop's product page; ``source`` takes the unpacked WebSRC release
(``dataset_split.json``, ``DOMAIN/NN/dataset.csv``, ``…/processed_data/PAGE.png`` and ``.html``), whose validation
websites have public answers. Run the task with contexts ``image+text``, ``text-only`` (a language model's view) and
with ``--set`` a prompt without ``{page}`` (pixels only) for the paper's three rows.
"""

from __future__ import annotations

import csv
import itertools
import random
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from .. import formats
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
        yield from itertools.islice(_import_websrc(out, source), count)
        return
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


def _import_websrc(out: Path, source: Path) -> Iterator[dict[str, Any]]:
    """Questions of WebSRC's validation websites. An id is two letters of the domain, seven digits of the page (the
    first two are the website's) and five of the question; equal ids are further answers to one question."""
    websites = set(formats.read_json(source / "dataset_split.json")["dev"])
    for file in sorted(source.glob("*/*/dataset.csv")):
        with file.open(encoding="utf-8-sig", newline="") as opened:
            rows = [row for row in csv.DictReader(opened) if row["id"][:4] in websites]
        for name, group in itertools.groupby(sorted(rows, key=lambda row: row["id"]), key=lambda row: row["id"]):
            answers = list(group)
            page = name[2:-5]
            picture = file.parent / "processed_data" / f"{page}.png"
            image = f"{name[:2]}{page}.png"
            if not (out / "images" / image).exists():
                shutil.copyfile(picture, out / "images" / image)
            yield {
                "id": name,
                "images": [image],
                "page": page_text(picture.with_suffix(".html").read_text(encoding="utf-8-sig", errors="replace")),
                "question": answers[0]["question"],
                "answers": list(dict.fromkeys(row["answer"] for row in answers)),
            }


def page_text(html: str) -> str:
    """The visible text of a page, blanks collapsed."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return " ".join(" ".join(reader.parts).split())


class _Reader(HTMLParser):
    """Collects text outside of scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in ("script", "style", "noscript")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style", "noscript") and self._hidden > 0

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)
