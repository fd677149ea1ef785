"""What documents and prompts are made of, and what encoding makes of it; needs the standard library only.

``KosmosProcessor.encode`` turns segments into :class:`Encoded`: there alone is decided how each is written as ids.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeAlias

Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right and bottom edge in shares of the picture's width and height, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class Phrase:
    """Part of a text, and where in the picture before it that is.

    Attributes:
        begin, end: first character of the phrase, and the one behind it.
        boxes: one for each thing that the phrase names; none where the model is to find them.

    Raises:
        ValueError: a box that is not of the picture: not finite, outside of it, empty or reversed.
    """

    begin: int
    end: int
    boxes: tuple[Box, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "boxes", tuple(check_box(box) for box in self.boxes))

    def as_json(self) -> dict[str, Any]:
        """Return the phrase as documents, conversations and sample logs hold it."""
        return {"phrase": [self.begin, self.end], "boxes": [list(box) for box in self.boxes]}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Phrase:
        """Read what ``as_json`` wrote; KeyError, TypeError or ValueError where it is something else."""
        begin, end = entry["phrase"]
        if not all(type(place) is int for place in (begin, end)):
            raise ValueError(f"a phrase is [first character, character behind it], got {str(entry['phrase'])[:40]}")
        return cls(begin, end, tuple(entry["boxes"]))


def check_box(box: Sequence[float]) -> Box:
    """Return the box as four floats.

    Raises:
        ValueError: it is not [x1, y1, x2, y2] with 0 ≤ x1 < x2 ≤ 1 and 0 ≤ y1 < y2 ≤ 1.
    """
    wanted = "a box is [x1, y1, x2, y2] with 0 ≤ x1 < x2 ≤ 1 and 0 ≤ y1 < y2 ≤ 1, in shares of the picture's sides"
    numbers = isinstance(box, list | tuple) and len(box) == 4 and all(type(edge) in (int, float) for edge in box)
    if not numbers or not all(math.isfinite(edge) for edge in box):
        raise ValueError(f"{str(box)[:80]} is no box: {wanted}")
    x1, y1, x2, y2 = map(float, box)
    if not (x1 >= 0 and x2 <= 1 and y1 >= 0 and y2 <= 1):
        raise ValueError(f"the box {list(box)} is outside the picture: {wanted}")
    if not (x1 < x2 and y1 < y2):
        raise ValueError(f"the box {list(box)} is empty or reversed: {wanted}")
    return x1, y1, x2, y2


@dataclass(frozen=True, slots=True)
class Text:
    """A stretch of text. ``supervised=False`` marks what a model reads but is not asked to write (a question).

    ``boxes`` makes it a grounded text (KOSMOS-2): its phrases in order, which may be none, that stand somewhere in the
    last picture before it. ``choices`` are all answers to a question, of which the text is the right one.

    Raises:
        ValueError: phrases outside the text, empty ones, or two that overlap; choices without the text, fewer than two,
            or one that comes twice.
    """

    text: str
    supervised: bool = True
    boxes: tuple[Phrase, ...] | None = None
    choices: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.boxes is not None:
            object.__setattr__(self, "boxes", _check_phrases(self.text, self.boxes))
        if self.choices is not None:
            object.__setattr__(self, "choices", _check_choices(self.text, self.choices))


def _check_choices(text: str, choices: Iterable[str]) -> tuple[str, ...]:
    """Return the choices as they are; ValueError if they are no choice."""
    given = tuple(choices)
    if len(given) < 2 or len(set(given)) < len(given):
        raise ValueError(f"choices {given}: at least two different answers are needed")
    if text not in given:
        raise ValueError(f"choices {given}: the right answer, {text!r}, is not among them")
    return given


def _check_phrases(text: str, phrases: Iterable[Phrase]) -> tuple[Phrase, ...]:
    """Return the phrases in order; ValueError if they are not separate parts of the text."""
    ordered = tuple(sorted(phrases, key=lambda phrase: phrase.begin))
    behind = 0
    for phrase in ordered:
        if not 0 <= phrase.begin < phrase.end <= len(text) or not text[phrase.begin : phrase.end].strip():
            raise ValueError(
                f"a phrase from character {phrase.begin} to {phrase.end} is no part of a text of {len(text)} characters"
            )
        if phrase.begin < behind:
            raise ValueError(f"the phrase {text[phrase.begin : phrase.end][:40]!r} overlaps the one before it")
        behind = phrase.end
    return ordered


@dataclass(frozen=True, slots=True)
class Token:
    """A special token by name, such as ``</s>``; text can never spell one."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """An image: in a document its encoded bytes (JPEG, PNG, WebP …), elsewhere whatever the caller makes pixels of."""

    files: ClassVar[tuple[str, ...]] = ("data",)
    data: Any


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of text that the bidirectional text encoder reads in the decoder's place (MetaLM, section 2.1)."""

    marks: ClassVar[tuple[str, str]] = ("<span>", "</span>")
    """Around it in the text of a prompt; they are not written."""
    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):  # a document's JSON may hold anything
            raise TypeError(f"a span is text, got {str(self.text)[:80]}")


@dataclass(frozen=True, slots=True)
class Entity:
    """A person or a thing by its id, a number or a name: ``Entity({"user": 7})``, one kind a segment.

    ``rating`` is what a user gave, where the document is a review; it is learned, never read.
    """

    ids: dict[str, int | str]
    rating: float | None = None

    def __post_init__(self) -> None:
        fits = isinstance(self.ids, dict) and len(self.ids) == 1
        for kind, identity in self.ids.items() if fits else ():
            known = (isinstance(identity, int) and not isinstance(identity, bool)) or isinstance(identity, str)
            fits = isinstance(kind, str) and known and bool(kind) and ":" not in kind
        if not fits:
            raise TypeError(f"an entity is one kind and its id, {{'user': 7}}, got {str(self.ids)[:80]}")
        if self.rating is not None and (isinstance(self.rating, bool) or not isinstance(self.rating, (int, float))):
            raise TypeError(f"the rating of an entity is a number, got {str(self.rating)[:80]}")

    def __str__(self) -> str:
        ((kind, identity),) = self.ids.items()
        return f"{kind} {identity}" + ("" if self.rating is None else f", rating {self.rating:g}")


@dataclass(frozen=True, slots=True)
class Persona:
    """Who speaks: any keys, each with a text or several, ``Persona({"president": "Abraham Lincoln"})``.

    The processor reads it as entities, one for each text, or as a text span (``personas``).
    """

    values: dict[str, str | list[str]]

    def __post_init__(self) -> None:
        fits = isinstance(self.values, dict) and bool(self.values)
        for key, value in self.values.items() if fits else ():
            texts = value if isinstance(value, list) else [value]
            fits = isinstance(key, str) and bool(key) and ":" not in key and bool(texts)
            fits = fits and all(isinstance(text, str) and bool(text.strip()) for text in texts)
            if not fits:
                break
        if not fits:
            raise TypeError(f"a persona has keys with texts, {{'city': 'Rome'}}, got {str(self.values)[:80]}")

    def pairs(self) -> list[tuple[str, str]]:
        """Each key with each of its texts, in order."""
        return [
            (key, text)
            for key, value in self.values.items()
            for text in (value if isinstance(value, list) else [value])
        ]

    def as_text(self) -> str:
        """Write all of it as sentences, ``city: Rome. name: Ada.``, for the text encoder."""
        return " ".join(f"{key}: {text.strip().rstrip('.')}." for key, text in self.pairs())

    def __str__(self) -> str:
        return "persona " + "; ".join(f"{key}: {text}" for key, text in self.pairs())


@dataclass(frozen=True, slots=True)
class Audio:
    """A sound: the bytes of its file (Ogg, WAV, FLAC, MP3 …), or where it lies."""

    files: ClassVar[tuple[str, ...]] = ("data",)
    data: Any


@dataclass(frozen=True, slots=True)
class Video:
    """Moving pictures: the bytes of their file (MP4, WebM, GIF, animated WebP …), or where it lies."""

    files: ClassVar[tuple[str, ...]] = ("data",)
    data: Any


@dataclass(frozen=True, slots=True)
class Fused:
    """A picture and a text that one encoder reads together, as MetaLM's vision-language encoder does."""

    files: ClassVar[tuple[str, ...]] = ("data",)
    data: Any
    words: str

    def __post_init__(self) -> None:
        if not isinstance(self.words, str):
            raise TypeError(f"the words beside an image are text, got {str(self.words)[:80]}")

    @property
    def text(self) -> str:
        """What vocabularies are made of and people look at."""
        return self.words


Segment: TypeAlias = Text | Token | Image | Span | Entity | Audio | Video | Fused | Persona
SEGMENTS: dict[str, type] = {
    "image": Image,
    "span": Span,
    "entity": Entity,
    "audio": Audio,
    "video": Video,
    "fused": Fused,
}
"""The segments that an encoder reads, by the name of their modality, which is also their key in a document's JSON.

Each is a dataclass, whose first field stands under that key, others beside it by their own names where they differ from
their defaults. Fields that ``files`` names are bytes of files, which lie beside a document's JSON. The segment of a
further modality is put here, beside its entry in ``MODALITIES``.
"""


WRITTEN = ("text", *(name for name, kind in SEGMENTS.items() if [each.name for each in fields(kind)] == ["text"]))
"""Types of a message's parts that are text, under the key ``text``."""


def modality_name(segment: Any) -> str:
    """Return the name of the modality that reads ``segment``; ValueError for text, tokens and unknown classes."""
    for name, kind in SEGMENTS.items():
        if type(segment) is kind:
            return name
    raise ValueError(f"{str(segment)[:80]!r} is no segment that an encoder reads; those are {', '.join(SEGMENTS)}")


class TooLong(ValueError):  # noqa: N818 - it names the segment, not an error of the program
    """A segment that is longer than its encoder reads."""


class Unreadable(ValueError):  # noqa: N818 - as above
    """A sound, video or picture of a segment that cannot be decoded, or is longer than its encoder reads."""


class BrokenPicture(Unreadable):
    """It is a picture."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Something that an encoder reads, and the places that its features take in the decoder.

    Attributes:
        modality: name of its modality.
        start: index of the first placeholder in the token sequence.
        length: number of placeholders; they follow each other.
        payload: what the encoder reads: of an image what its segment holds, of a span its ids (L,), of an entity its
            row.
    """

    modality: str
    start: int
    length: int
    payload: Any


@dataclass(slots=True)
class Encoded:
    """Segments as ids.

    Attributes:
        ids: all segments, one behind the other.
        placed: what encoders read, in order.
        edges: where each segment begins, and the end of the last.
        whole: (begin, end) of the tokens of each phrase's boxes, which are not cut in two.
    """

    ids: list[int] = field(default_factory=list)
    placed: list[Placed] = field(default_factory=list)
    edges: list[int] = field(default_factory=lambda: [0])
    whole: list[tuple[int, int]] = field(default_factory=list)

    def around(self, placed: Placed) -> tuple[int, int]:
        """Return begin and end of the segment in which something was placed: its placeholders and marks."""
        at = bisect_right(self.edges, placed.start)
        return self.edges[at - 1], self.edges[at]
