"""The easy-VQA pictures as facts: which shape, which colour, which questions, read from the installed package.

easy-VQA (PyPI ``easy-vqa``, MIT) has 5,000 drawn images of 64×64 pixels with one coloured shape each, 48,248 questions
and a fixed train/test split. It gives no captions; shape and colour are worked out here from the answers alone.
"""

from __future__ import annotations

import importlib.util
import json
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")

PRESENT = ("is a {} present?", "is there a {}?", "does the image contain a {}?", "is there a {} in the image?")
ABSENT = (
    "is no {} present?",
    "is there not a {}?",
    "does the image not contain a {}?",
    "is there not a {} in the image?",
)
"""The package's own words for yes/no questions; ``{}`` is a shape, or a colour and "shape"."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One image with its questions. ``shape`` and ``color`` are None where the answers do not settle them."""

    number: int
    path: Path
    questions: Sequence[tuple[str, str]]
    shape: str | None
    color: str | None

    @property
    def thing(self) -> str:
        """What a caption calls it: ``a red triangle``, ``a triangle`` or ``a red shape``."""
        return " ".join(word for word in ("a", self.color, self.shape or "shape") if word)


def load(split: str) -> list[Picture]:
    """All pictures of ``split`` ("train" or "test"), by number.

    Raises:
        ModuleNotFoundError: the package easy-vqa is not installed.
    """
    folder = package_folder("easy_vqa") / "data" / split
    questions: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for question, answer, number in json.loads((folder / "questions.json").read_text(encoding="utf-8")):
        questions[number].append((question, answer))
    return [
        Picture(number, folder / "images" / f"{number}.png", asked, settle(asked, SHAPES), settle(asked, COLORS))
        for number, asked in sorted(questions.items())
    ]


def package_folder(name: str) -> Path:
    """The folder of an installed package, found without importing it (its own imports may be heavy)."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the package {name} is not installed", name=name)
    return Path(next(iter(spec.submodule_search_locations)))


def settle(questions: Sequence[tuple[str, str]], values: Sequence[str]) -> str | None:
    """The one of ``values`` that all answers leave possible, or None if they leave several."""
    possible = set(values)
    for question, answer in questions:
        if answer in values:
            possible &= {answer}
        elif (named := set(values) & set(re.findall(r"\w+", question))) and answer in ("yes", "no"):
            possible = possible & named if (answer == "yes") != is_negated(question) else possible - named
        elif named:  # "what is the red shape?" says that it is red
            possible &= named
    return possible.pop() if len(possible) == 1 else None


def is_negated(question: str) -> bool:
    """True for "is there not a red shape?" and its like, whose answer turns yes and no around."""
    return bool(re.search(r"\b(no|not)\b", question))


def presence(picture: Picture, negated: bool, rng: random.Random) -> tuple[str, str]:
    """Draw a yes/no question about the shape or the colour of ``picture``, and its answer.

    The package names what is not in the picture seven times in eight, so its answers can be guessed from the words.
    Here the picture's own shape or colour is named in half of the questions, and only the picture can tell.

    Args:
        picture: one with a settled shape and colour.
        negated: ask with "no" or "not" in half of the questions, which turns the answer around.
        rng: draws all of it.

    Raises:
        ValueError: its shape or colour is not settled.
    """
    if picture.shape is None or picture.color is None:
        raise ValueError(f"picture {picture.number} has no settled shape and colour to ask for")
    about_color = rng.randrange(len(COLORS) + len(SHAPES)) < len(COLORS)
    values, own = (COLORS, picture.color) if about_color else (SHAPES, picture.shape)
    is_there, turned = rng.random() < 0.5, negated and rng.random() < 0.5
    named = own if is_there else rng.choice([value for value in values if value != own])
    question = rng.choice(ABSENT if turned else PRESENT).format(f"{named} shape" if about_color else named)
    return question, "yes" if is_there != turned else "no"


def question_type(answer: str) -> str:
    """``yes/no``, ``shape`` or ``color``."""
    return "yes/no" if answer in ("yes", "no") else "shape" if answer in SHAPES else "color"
