"""The parts of a prompt that a model reads in one go: token ids with placeholders, and what encoders read for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from kosmos.modalities import MODALITIES, Modality
from kosmos.segments import Phrase


class Piece(NamedTuple):
    """Something that an encoder reads.

    Attributes:
        modality: name of its modality.
        key: equal for equal content.
        payload: of an image its file, of a sound or video its segment, of a span its ids.
    """

    modality: str
    key: object
    payload: Any


@dataclass(frozen=True)
class Stage:
    """One part of a prompt: token ids with placeholders, and what encoders read to fill them, in order."""

    ids: tuple[int, ...]
    pieces: tuple[Piece, ...] = ()

    def __add__(self, other: Stage) -> Stage:
        return Stage(self.ids + other.ids, self.pieces + other.pieces)

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for equal content."""
        return self.ids, tuple(piece.key for piece in self.pieces)


class Written(str):
    """A written answer; ``phrases`` with boxes, in shares of what the model sees of a picture, if it wrote some."""

    phrases: tuple[Phrase, ...] = ()


def by_modality(stages: Sequence[Stage]) -> Iterator[tuple[Modality, list[Piece]]]:
    """The modalities that occur, in the table's order, each with its pieces in the order of their places."""
    for name, modality in MODALITIES.items():
        if pieces := [piece for stage in stages for piece in stage.pieces if piece.modality == name]:
            yield modality, pieces
