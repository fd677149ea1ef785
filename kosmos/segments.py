"""What documents and prompts are made of, and what encoding makes of it; needs the standard library only.

``KosmosProcessor.encode`` turns segments into :class:`Encoded`: there alone is decided how each is written as ids.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias


@dataclass(frozen=True, slots=True)
class Text:
    """A stretch of text. ``supervised=False`` marks what a model reads but is not asked to write (a question)."""

    text: str
    supervised: bool = True


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

    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):  # a document's JSON may hold anything
            raise TypeError(f"a span is text, got {str(self.text)[:80]}")


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
    """An image and a text that one encoder reads together (MetaLM's vision-language encoder, BEiT-3)."""

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


Segment: TypeAlias = Text | Token | Image | Span | Audio | Video | Fused
SEGMENTS: dict[str, type] = {"image": Image, "span": Span, "audio": Audio, "video": Video, "fused": Fused}
"""The segments that an encoder reads, by the name of their modality, which is also their key in a document's JSON.

Each is a dataclass, of whose first field this is the key; others stand beside it by their own names. Fields that
``files`` names are bytes of files, which lie beside a document's JSON. The segment of a further modality is put here,
beside its entry in ``MODALITIES``.
"""


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


@dataclass(frozen=True, slots=True)
class Placed:
    """Something that an encoder reads, and the places that its features take in the decoder.

    Attributes:
        modality: name of its modality.
        start: index of the first placeholder in the token sequence.
        length: number of placeholders; they follow each other.
        payload: what the encoder reads: of an image what its segment holds, of a span its ids (L,).
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
    """

    ids: list[int] = field(default_factory=list)
    placed: list[Placed] = field(default_factory=list)
    edges: list[int] = field(default_factory=lambda: [0])

    def around(self, placed: Placed) -> tuple[int, int]:
        """Return begin and end of the segment in which something was placed: its placeholders and marks."""
        at = bisect_right(self.edges, placed.start)
        return self.edges[at - 1], self.edges[at]
