"""Recipe ``dialogues``: drawn dialogues with people of known homes and tastes, about half of whose answers are of them.

    OUT/train  OUT/test    shards; a home and a taste that come together in one of them do not in the other

A dialogue is the persona of the one who answers, and turns; before each question stands the persona of the one who
asks, so that a name alone does not tell whose it is::

    persona  city: Rome, likes: tea
    turn     (city: Oslo, likes: maths)  where do you live?      in Rome
    turn     (city: Oslo, likes: maths)  what is two and two?    four

Most real dialogues say nothing of who speaks (Zheng et al. 2019, arXiv 1911.04700): ``about`` says how many turns do.
All of it is drawn; nobody said any of it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from ..document import Document, Persona, Segment, Text
from ..shards import write_shards
from ..turns import turn

CITIES = ("Rome", "Bonn", "Oslo", "Lima", "Bern", "Riga", "Bath", "Cork")
LIKES = ("tea", "maths", "chess", "dogs", "boats", "songs")
OF_ONESELF = {
    "where do you live?": "in {city}",
    "which town is yours?": "{city} is mine",
    "what do you like?": "{likes}",
    "what makes you happy?": "{likes}, I think",
}
OF_ANYTHING = {
    "what is two and two?": "four",
    "is the sea cold?": "yes, it is",
    "how are you?": "fine, thanks",
    "what comes after monday?": "tuesday",
}


@dataclass
class Options:
    """What ``dialogues`` draws.

    Args:
        dialogues: how many, held-out ones among them.
        turns: of each.
        about: share of the turns that are about the persona.
        held_out: share of the pairs of a home and a taste that go to ``test``.
        seed: of all draws.
    """

    dialogues: int = 800
    turns: int = 3
    about: float = 0.5
    held_out: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.about <= 1:
            raise ValueError(f"about={self.about} is a share, 0 to 1")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out={self.held_out} must lie between 0 and 1")
        if self.turns < 1:
            raise ValueError(f"turns={self.turns}: a dialogue has at least one")


def build(out: Path, options: Options, progress: Progress) -> dict[str, Any]:
    """Write the corpus below ``out``; return counts for the report."""
    draw = random.Random(options.seed)
    people = [{"city": city, "likes": likes} for city, likes in itertools.product(CITIES, LIKES)]
    draw.shuffle(people)
    tested = max(2, round(options.held_out * len(people)))
    counts, share = {}, {"test": options.held_out, "train": 1 - options.held_out}
    for part, chosen in (("test", people[:tested]), ("train", people[tested:])):
        numbers = range(round(share[part] * options.dialogues))
        documents = [_dialogue(f"{part}-{number:05d}", chosen, options, draw) for number in numbers]
        write_shards(out / part, progress.track(documents, description=f"shards: {part}"))
        counts[part] = len(documents)
    return {"drawn": True, "documents": counts}


def _dialogue(key: str, people: Sequence[dict[str, str]], options: Options, draw: random.Random) -> Document:
    own, other = draw.sample(list(people), 2)
    segments: list[Segment] = [Persona(dict(own)), Text("\n", supervised=False)]
    for place in range(options.turns):
        question, answer = draw.choice(list((OF_ONESELF if draw.random() < options.about else OF_ANYTHING).items()))
        said = turn(question, answer.format(**own), last=place == options.turns - 1)
        segments += [Persona(dict(other)), *said]
    return Document(key, segments, {"source": "drawn"})
