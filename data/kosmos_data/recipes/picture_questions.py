"""Questions about pictures with names: what is this, what kind of thing, is it an animal.

Questions and answers come from the sources alone: a picture's name, its group (an emoji's group, a stamp's folder) and
its keywords. Each yes/no question has as many pictures with yes as with no, so that without the picture it can only be
guessed (the balanced pairs of VQA v2, arXiv 1612.00837). A picture that the sources leave open is not asked.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..document import Document, Image, Segment
from ..turns import conversations
from .evaluation_files import Question
from .picture_sources import Named

NAME, KIND, YES_NO = "name", "kind", "yes/no"  # question types


@dataclass(frozen=True, slots=True)
class Kind:
    """What a yes/no question asks for, and which pictures answer it.

    Args:
        name: with its article.
        words: one of them among a picture's keywords or in its name says yes, in the groups ``some``.
        some: groups of which some pictures are of this kind.
        all: groups of which all are.
        unclear: other groups where a picture may be of this kind without saying so; none of them says no.
    """

    name: str
    words: frozenset[str]
    some: frozenset[str] = frozenset()
    all: frozenset[str] = frozenset()
    unclear: frozenset[str] = frozenset()

    def answer(self, picture: Named) -> str | None:
        """``yes``, ``no``, or None where the sources do not tell."""
        if not picture.group:
            return None
        said = not self.words.isdisjoint({*picture.keywords, *picture.phrase.lower().split()})
        if picture.group in self.all or (said and picture.group in self.some):
            return "yes"
        return None if said or picture.group in self.some | self.unclear else "no"


def _kind(name: str, words: str, some: str = "", all_of: str = "", unclear: str = "") -> Kind:
    groups = (frozenset(filter(None, listed.split(", "))) for listed in (some, all_of, unclear))
    return Kind(name, frozenset(words.split()), *groups)


# Emoji have the groups of Unicode ("animals and nature"), Tux Paint's stamps its folders ("animals").
_PEOPLE = "man woman men women person people boy girl"
KINDS = (
    _kind("an animal", "animal bird", "animals and nature", "animals", "smileys and emotion, food and drink, food"),
    _kind("food or drink", "food drink fruit vegetable", "", "food and drink, food", "animals and nature, plants"),
    _kind("a plant", "plant flower tree", "animals and nature", "plants", "food and drink, food"),
    _kind("a person", _PEOPLE, "people and body", "", "smileys and emotion, symbols, people"),
    _kind("a face", "face", "smileys and emotion", "", "people and body, animals and nature, people, animals"),
    _kind("a vehicle", "vehicle", "travel and places", "vehicles"),
    _kind("a building", "building", "travel and places", ""),
    _kind("something to wear", "clothing hat", "objects", "clothes", "people and body, people, activities"),
    _kind("a symbol", "symbol sign", "", "symbols", "smileys and emotion, travel and places, objects"),
)


def ask(pictures: Sequence[Named]) -> list[list[Question]]:
    """The questions of each picture: its name, its group where it has one, and balanced yes/no questions.

    Yes and no are balanced over ``pictures``: of the more frequent answer as many are drawn, by hash, as the other has.
    """
    asked = [[Question("what is this?", picture.phrase, NAME)] for picture in pictures]
    for questions, picture in zip(asked, pictures, strict=True):
        if picture.group:
            questions.append(Question("what kind of thing is it?", picture.group, KIND))
    for kind in KINDS:
        question = f"is this {kind.name}?"
        places: dict[str | None, list[int]] = {"yes": [], "no": [], None: []}
        for place, picture in enumerate(pictures):
            places[kind.answer(picture)].append(place)
        count = min(len(places["yes"]), len(places["no"]))
        for answer in ("yes", "no"):
            for place in sorted(places[answer], key=lambda place: _draw(question, pictures[place].key))[:count]:
                asked[place].append(Question(question, answer, YES_NO))
    return asked


def documents(pictures: Sequence[Named], most: int) -> Iterator[Document]:
    """An image, then one to ``most`` of its questions with answers."""
    for picture, questions in zip(pictures, ask(pictures), strict=True):
        rng = random.Random(f"qa {picture.key}")
        data = picture.path.read_bytes()
        turns = [(question.text, question.answer) for question in questions]
        for number, said in enumerate(conversations(turns, most, rng)):
            segments: list[Segment] = [Image(data), *said]
            yield Document(f"{picture.key}-{number}", segments)


def choices(pictures: Sequence[Named], count: int = 8) -> list[tuple[str, ...]]:
    """For each picture ``count`` different names, its own among them, in an order drawn by hash.

    The others are names of other ``pictures``, drawn by hash, with base names of their own, and none whose words are
    all in the right name or the other way round ("dog", "dog face"): only one is right. Fewer where there are too few.
    """
    base_names = [picture.base_name for picture in pictures]
    rows = []
    for picture in pictures:
        own, chosen, used = _words(picture), [picture.phrase], {picture.base_name}
        for place in sorted(range(len(pictures)), key=lambda place: _draw(picture.key, pictures[place].key)):
            other, base = pictures[place], base_names[place]
            if len(chosen) < count and base not in used and not (own <= _words(other) or _words(other) <= own):
                chosen.append(other.phrase)
                used.add(base)
        rows.append(tuple(sorted(chosen, key=lambda name: _draw("order", picture.key, name))))
    return rows


def _words(picture: Named) -> set[str]:
    return set(picture.phrase.lower().split()) - {"a", "an", "the", "some"}


def _draw(*parts: str) -> bytes:
    return hashlib.sha256("\n".join(parts).encode()).digest()
