"""Recipe ``things``: drawn things with invented names, whose colours only pictures tell; asked in words.

    OUT/pictures    shards: a picture of a thing, then "An image of a dax"; no colour is named
    OUT/names       the same documents without their pictures
    OUT/colors      shards, words alone: "The color of dax is? red", of every other thing
    OUT/eval/told   test.jsonl, the things of ``colors``
    OUT/eval/seen   test.jsonl, the others: what ``pictures`` shows is the only place where their colour is

A name says nothing of a colour, so that a model that answers ``seen`` in words has taken it from pictures (cross-modal
transfer, KOSMOS-1, arXiv 2302.14045, section 4.9.2); what is trained on ``names`` instead can only guess. The task
``memory_color`` asks both sets. All of it is drawn.
"""

from __future__ import annotations

import io
import itertools
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image as Picture
from PIL import ImageDraw
from rich.progress import Progress

from ..document import Document, Image, Segment, Text
from ..shards import write_shards

COLORS = {
    "red": (210, 30, 35), "green": (40, 150, 50), "blue": (35, 70, 200), "yellow": (235, 215, 40),
    "orange": (240, 130, 20), "purple": (120, 45, 150), "pink": (245, 150, 185), "brown": (115, 70, 35),
}  # fmt: skip
SHAPES = ("ellipse", "rectangle", "triangle")
SHADE = 18
"""Most that a channel of a picture's colour lies beside that of its name."""


@dataclass
class Options:
    """What ``things`` draws.

    Args:
        things: how many there are; every other one's colour is told in words.
        pictures: of each thing.
        told: documents of ``colors`` for each thing that it tells.
        side: of a picture, in pixels.
        seed: of all draws.
    """

    things: int = 160
    pictures: int = 20
    told: int = 5
    side: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.things % 2 or not 2 <= self.things <= len(_names()):
            raise ValueError(
                f"things={self.things} must be even, and from 2 to {len(_names())}, for so many have names"
            )
        for name in ("pictures", "told"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.side < 16:
            raise ValueError(f"side={self.side} must be at least 16 pixels")


@dataclass(frozen=True)
class Thing:
    """An invented thing: all that is ever said of it is its name, all that is shown its colour and shape."""

    name: str
    color: str
    shape: str


def build(out: Path, options: Options, progress: Progress) -> dict[str, Any]:
    """Write the corpus below ``out``; return counts for the report."""
    things = draw_things(options)
    told = things[::2]
    shown = [(thing, number) for number in range(options.pictures) for thing in things]
    corpora = {
        "pictures": (_captioned(thing, number, options, True) for thing, number in shown),
        "names": (_captioned(thing, number, options, False) for thing, number in shown),
        "colors": (_told(thing, number) for number in range(options.told) for thing in told),
    }
    counts = {"pictures": len(shown), "names": len(shown), "colors": options.told * len(told)}
    for name, documents in corpora.items():
        write_shards(out / name, progress.track(documents, total=counts[name], description=f"shards: {name}"))
    for name, part in (("told", told), ("seen", things[1::2])):
        folder = out / "eval" / name
        folder.mkdir(parents=True)
        rows = [{"id": thing.name, "object": thing.name, "answers": [thing.color]} for thing in part]
        (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"drawn": True, "documents": counts}


def draw_things(options: Options) -> list[Thing]:
    """The things; every two neighbours look alike, and the first of them is told in words."""
    names = random.Random(f"things {options.seed}").sample(_names(), options.things)
    looks = itertools.cycle(itertools.product(COLORS, SHAPES))
    things: list[Thing] = []
    for first, second in zip(names[::2], names[1::2], strict=True):
        look = next(looks)
        things += [Thing(first, *look), Thing(second, *look)]
    return things


def _names() -> list[str]:
    """Names of three letters: consonant, vowel, consonant."""
    return ["".join(letters) for letters in itertools.product("bdfgklmnprstvz", "aeiou", "bdgklmnpstvxz")]


def _captioned(thing: Thing, number: int, options: Options, with_picture: bool) -> Document:
    caption = Text(f"An image of a {thing.name}")
    segments: list[Segment] = [Image(_picture(thing, number, options)), caption] if with_picture else [caption]
    return Document(f"{thing.name}-{number}", segments)


def _told(thing: Thing, number: int) -> Document:
    """In the words of ``memory_color``, with the loss on the colour."""
    asked = Text(f"The color of {thing.name} is?", supervised=False)
    return Document(f"{thing.name}-{number}", [asked, Text(f" {thing.color}")])


def _picture(thing: Thing, number: int, options: Options) -> bytes:
    """A PNG: the thing anywhere and of any size, on some gray."""
    draw = random.Random(f"{options.seed} {thing.name} {number}")
    side, gray = options.side, draw.randrange(150, 256)
    picture = Picture.new("RGB", (side, side), (gray, gray, gray))
    red, green, blue = (min(255, max(0, value + draw.randint(-SHADE, SHADE))) for value in COLORS[thing.color])
    width, height = draw.randint(side // 3, side - 4), draw.randint(side // 3, side - 4)
    left, top = draw.randint(0, side - width - 1), draw.randint(0, side - height - 1)
    box = (left, top, left + width, top + height)
    pen = ImageDraw.Draw(picture)
    if thing.shape == "triangle":
        pen.polygon([(left, top + height), (left + width, top + height), (left + width // 2, top)], (red, green, blue))
    else:
        (pen.ellipse if thing.shape == "ellipse" else pen.rectangle)(box, (red, green, blue))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
