"""Scenes in words: drawn texts that say which coloured shape is where, and questions whose answer stands in them.

    A blue circle is at the top. On the left there is a red triangle. …
    Question: what color is the shape on the left? Answer: red

The texts are drawn by rules, not written by people: they test one thing, whether a model finds what a context says. A
question cannot be answered without its context, and no scene of the test split occurs in training (the split is by hash
of the context). In half of the sentences the thing comes before its place, so whoever reads from left to right only has
to look back.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

from .easy_vqa import COLORS, SHAPES
from .splits import held_out

PLACES = ("on the left", "on the right", "in the middle", "at the top", "at the bottom")
FORMS = ("{Place} there is {thing}.", "{Place} is {thing}.", "{Thing} is {place}.", "There is {thing} {place}.")
HELD_OUT_EVERY = 10


@dataclass(frozen=True, slots=True)
class Scene:
    """A context, and questions about it: (kind, question, answer), the kind being color, shape or place."""

    number: int
    context: str
    questions: tuple[tuple[str, str, str], ...]


def scenes(seed: int, things: int, test: bool) -> Iterator[Scene]:
    """Draw scenes of ``things`` shapes without end, those of the test split or the others; no context comes twice.

    Raises:
        ValueError: more things than places.
    """
    if not 2 <= things <= len(PLACES):
        raise ValueError(f"a scene has 2 to {len(PLACES)} things, one a place; got {things}")
    drawn: set[str] = set()
    for number in itertools.count():
        scene = _draw(random.Random(f"{seed} scene {number}"), number, things)
        if scene.context not in drawn and held_out(scene.context, HELD_OUT_EVERY) == test:
            drawn.add(scene.context)
            yield scene


def _draw(rng: random.Random, number: int, things: int) -> Scene:
    colors = rng.sample(COLORS, things)  # each colour once, so that a colour says which thing is meant
    shown = [
        (place, color, rng.choice(SHAPES)) for place, color in zip(rng.sample(PLACES, things), colors, strict=True)
    ]
    sentences, questions = [], []
    for place, color, shape in shown:
        thing = f"a {color} {shape}"
        sentences.append(
            rng.choice(FORMS).format(place=place, Place=place.capitalize(), thing=thing, Thing=thing.capitalize())
        )
        questions += [
            ("color", f"what color is the shape {place}?", color),
            ("shape", f"what shape is {place}?", shape),
            ("place", f"where is the {color} shape?", place),
        ]
    return Scene(number, " ".join(sentences), tuple(rng.sample(questions, len(questions))))
