"""Rows of a fixed length out of examples of any length.

``concat`` fills a row to the brim and goes on with a cut document in the next row, KOSMOS-1's "full-sentence" packing
(``spm_lm_loader._read_from_files`` of KOSMOS-2). ``best_fit`` keeps a small pool of examples per source, takes the one
that fills the rest of the row best, and cuts only what is longer than a row. Both are one algorithm with another pool
size and another rule for cutting. An image is never cut.

Differs from KOSMOS-1: pairs are packed too (the release pads one pair a row); a cut document goes on behind a ``<s>``
without loss, since its next token was already predicted at the end of the row before; what one source leaves of a row
is filled from the others.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .example import IGNORED, Example

POOL = {"concat": 1, "best_fit": 16}
"""Examples held per lane and source; a saved state names each, so the pool is what bounds its size."""

MIN_PIECE = 16
"""A document is not cut to put fewer tokens than this into a row: a scrap teaches nothing."""

FIELDS = ("token", "label", "document", "block", "position", "position_in_span", "source")
TOKEN, LABEL, DOCUMENT, BLOCK, POSITION, POSITION_IN_SPAN, SOURCE = range(len(FIELDS))


@dataclass(slots=True)
class Piece:
    """Tokens ``start`` … ``stop`` of an example, placed in a row; ``key`` says of which document."""

    example: Example
    source: int
    start: int
    stop: int
    images: int
    key: int = 0

    @property
    def length(self) -> int:
        return self.stop - self.start + (self.start > 0)


@dataclass(slots=True)
class Entry:
    """An example waiting for its place.

    Args:
        ordinal: where it stands in its lane's stream.
        example: the whole of it.
        offset: so many tokens of it are already in earlier rows.
        key: hash of epoch and document.
        step: of the run, in which the document was read.
        length: tokens that the rest takes, with the ``<s>`` that a continued document begins with.
        images: images in the rest.
    """

    ordinal: int
    example: Example
    offset: int = 0
    key: int = 0
    step: int = 0
    length: int = field(init=False)
    images: int = field(init=False)

    def __post_init__(self) -> None:
        self.length = len(self.example) - self.offset + (self.offset > 0)
        self.images = count_images(self.example, self.offset, len(self.example))

    def take(self, stop: int, source: int) -> Piece:
        """Split off everything before token ``stop``."""
        if stop == len(self.example):
            return Piece(self.example, source, self.offset, stop, self.images, self.key)
        images = count_images(self.example, self.offset, stop)
        piece = Piece(self.example, source, self.offset, stop, images, self.key)
        self.offset = stop
        self.__post_init__()
        return piece


def count_images(example: Example, start: int, stop: int) -> int:
    """Images whose slots lie between tokens ``start`` and ``stop``."""
    if not example.spans:
        return 0
    return sum(span.kind == "image" and start <= span.start < stop for span in example.spans)


@dataclass(slots=True)
class Space:
    """What is left of a row."""

    tokens: int
    images: int


@dataclass(frozen=True, slots=True)
class Packer:
    """The choice of the next piece. Choices are (index in the pool, token to stop at), or None if nothing fits.

    Args:
        row_tokens: T.
        max_images: most images in a row.
        cut_all: cut any example at the end of a row (concat), or only those that no row could hold (best_fit).
    """

    row_tokens: int
    max_images: int
    cut_all: bool

    def oldest(self, pool: Sequence[Entry], space: Space) -> tuple[int, int] | None:
        """The oldest entry, whole or as much of it as fits; an empty row takes some of any :meth:`possible` one."""
        entry = pool[0]
        if entry.length <= space.tokens and entry.images <= space.images:
            return 0, len(entry.example)
        stop = self._cut(entry, space) if self.may_cut(entry) else None
        return None if stop is None else (0, stop)

    def longest(self, pool: Sequence[Entry], space: Space) -> tuple[int, int] | None:
        """The longest entry that fits whole, else the longest first part of one that may be cut."""
        tokens, images = space.tokens, space.images
        best, longest = -1, 0
        for index, entry in enumerate(pool):
            if longest < entry.length <= tokens and entry.images <= images:
                best, longest = index, entry.length
        if best >= 0:
            return best, len(pool[best].example)
        cuts = []
        for index, entry in enumerate(pool):
            if self.may_cut(entry) and (stop := self._cut(entry, space)) is not None:
                used = stop - entry.offset + (entry.offset > 0)
                if used == tokens:
                    return index, stop
                cuts.append((used, -index, stop))
        return (-max(cuts)[1], max(cuts)[2]) if cuts else None

    def nearest(self, pool: Sequence[Entry], space: Space, goal: float) -> tuple[int, int] | None:
        """The whole entry whose length is nearest to ``goal`` tokens, if taking it is better than taking none."""
        best, least = -1, goal
        for index, entry in enumerate(pool):
            if abs(goal - entry.length) < least and entry.length <= space.tokens and entry.images <= space.images:
                best, least = index, abs(goal - entry.length)
        return (best, len(pool[best].example)) if best >= 0 else None

    def possible(self, example: Example) -> bool:
        """Whether the example can be brought into rows at all: a stretch that may not be cut must fit into one."""
        if (len(example) <= self.row_tokens and len(example.spans) <= self.max_images) or example.cuts[1:].all():
            return True
        bounds = np.flatnonzero(example.cuts)
        edges = np.concatenate([[0], bounds[bounds > 0], [len(example)]])
        stretches = np.diff(edges)
        stretches[1:] += 1  # the <s> of a continued document
        starts = [span.start for span in example.spans if span.kind == "image"]
        images = np.diff(np.searchsorted(starts, edges))
        return int(stretches.max()) <= self.row_tokens and int(images.max()) <= self.max_images

    def may_cut(self, entry: Entry) -> bool:
        """Whether the entry may come in several pieces."""
        return self.cut_all or entry.length > self.row_tokens or entry.images > self.max_images

    def _cut(self, entry: Entry, space: Space) -> int | None:
        """The last place to cut ``entry`` so that its first part fits the space; None if that part is a scrap."""
        restart = int(entry.offset > 0)
        stop = min(entry.offset + space.tokens - restart, len(entry.example))
        images = [span for span in entry.example.spans if span.kind == "image" and span.start >= entry.offset]
        if len(images) > space.images:
            stop = min(stop, images[space.images].start - 1)
        while entry.offset < stop < len(entry.example) and not entry.example.cuts[stop]:
            stop -= 1
        least = min(MIN_PIECE, self.row_tokens // 2) if space.tokens < self.row_tokens else 1
        return stop if stop >= entry.offset + least else None


@dataclass(slots=True)
class Row:
    """One packed row.

    Args:
        number: place of the row in the whole run; it belongs to lane ``number % lanes``.
        fields: int32 (7, T), in the order of :data:`FIELDS`; padding has document −1 and source −1.
        weight: float32 (T,).
        images: ``uint8`` (3, S, S) each.
        texts: ids of the text spans for the text encoder.
        order: hash of which pieces of which documents these are.
        lane_state: the lane's state after this row.
        skipped: bad samples met while making the row, by reason.
        fallbacks: stretches that were too short for their objective and stayed plain causal text.
    """

    number: int
    fields: np.ndarray
    weight: np.ndarray
    images: list[np.ndarray]
    texts: list[np.ndarray]
    order: int
    documents: int
    lane_state: dict = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    fallbacks: int = 0


def fill_row(row: Row, pieces: Sequence[Piece], bos: int, document_mask: bool) -> None:
    """Write ``pieces`` one behind the other into the arrays of ``row``."""
    lengths = [piece.length for piece in pieces]
    starts = [0, *itertools.accumulate(lengths)]
    end = starts[-1]
    fields = row.fields
    fields[TOKEN, :end] = _joined(pieces, "token", bos)
    fields[LABEL, :end] = _joined(pieces, "label", IGNORED)
    row.weight[:end] = _joined(pieces, "weight", 0.0)
    number = np.repeat(np.arange(len(pieces)), lengths)
    fields[DOCUMENT, :end] = number if document_mask else 0
    fields[SOURCE, :end] = np.array([piece.source for piece in pieces])[number]
    first = [int(piece.example.position[piece.start]) - (piece.start > 0) for piece in pieces]
    shifts = [begin - old for begin, old in zip([0] * len(pieces) if document_mask else starts, first, strict=False)]
    fields[POSITION, :end] = _joined(pieces, "position", first) + np.array(shifts)[number]
    fields[POSITION_IN_SPAN, :end] = _joined(pieces, "position_in_span", 0)
    block = _joined(pieces, "block", -1)
    if block.max() >= 0:
        block = _apart(block, starts)
    fields[BLOCK, :end] = block
    for piece in pieces:
        for span in piece.example.spans:
            if piece.start <= span.start < piece.stop:
                (row.images if span.kind == "image" else row.texts).append(span.payload)


def _joined(pieces: Sequence[Piece], column: str, restart: float | Sequence[int]) -> np.ndarray:
    """A column of all pieces; ``restart`` (of each piece) stands at the ``<s>`` before a continued document."""
    parts: list[np.ndarray | list[float]] = []
    for number, piece in enumerate(pieces):
        whole = getattr(piece.example, column)
        if piece.start > 0:
            parts.append([restart[number] if isinstance(restart, Sequence) else restart])
        parts.append(whole if piece.stop - piece.start == len(whole) else whole[piece.start : piece.stop])
    return np.concatenate(parts)


def _apart(block: np.ndarray, starts: Sequence[int]) -> np.ndarray:
    """Blocks of different pieces, numbered through; the pieces begin at ``starts``, of which the last is the end."""
    taken = 0
    for start, stop in itertools.pairwise(starts):
        part = block[start:stop]
        part[part >= 0] += taken
        taken = max(taken, int(part.max()) + 1)
    return block


def empty_row(number: int, row_tokens: int, pad: int) -> Row:
    """A row of nothing but padding."""
    fields = np.zeros((len(FIELDS), row_tokens), dtype=np.int32)
    fields[TOKEN] = pad
    fields[LABEL] = IGNORED
    fields[[DOCUMENT, BLOCK, SOURCE]] = -1
    return Row(number, fields, np.zeros(row_tokens, dtype=np.float32), [], [], order=0, documents=0)
