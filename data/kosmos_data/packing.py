"""Rows of a fixed length out of examples of any length.

``sentences`` is KOSMOS-1's "full-sentence" packing (arXiv 2302.14045, section 3.1; ``_read_from_files`` of KOSMOS-2's
``spm_lm_loader.py``): a row holds whole sentences of one document after the other.

    documents   <s> a b </line> c d </s>      <s> e f . ▁g h </s>
    row 1       <s> a b </line> c d </s> e f      labels  a b </line> c d </s> e f .
    row 2       <s> ▁g h …                        labels  ▁g h </s> …

A row is the ids ``<s>``, sentence, sentence … without the last as inputs, and without the first as labels. So ``<s>``
stands once a row, the ``</s>`` of a document is an input in the place of the next one's ``<s>``, and its label is the
next one's first token. With ``document_mask`` that ``</s>`` belongs to the document behind it, which sees nothing
before it; KOSMOS-1 has no such mask.

``cut`` fills a row to the brim, cuts a document wherever the row ends and goes on with it in the next. ``best_fit``
keeps a small pool of examples per source, takes the one that fills the rest of the row best, and cuts only what is
longer than a row. In both every piece begins with ``<s>``, and ``</s>`` is only ever a label. All three are one
algorithm with another pool size and another rule for cutting. An image is never cut.

Differs from KOSMOS-1: pairs are packed too (the release pads one pair a row); sentences end also within a line, by the
rule of :mod:`kosmos_data.sentences`, where the release knows lines only; of a sentence longer than a row nothing is
lost (the release drops what is too much); a row has T inputs, the release's T − 1; what one source leaves of a row is
filled from the others. A document that is cut elsewhere than behind a sentence goes on behind a ``<s>`` without loss,
since its next token was already predicted at the end of the row before.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from kosmos.segments import Placed

from .example import IGNORED, Choices, Example

POOL = {"sentences": 1, "cut": 1, "best_fit": 16}
"""Examples held per lane and source; a saved state names each, so the pool is what bounds its size."""

MIN_PIECE = 16
"""A document is not cut to put fewer tokens than this into a row: a scrap teaches nothing. A sentence is no scrap."""

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
        return self.stop - self.start + self.restart

    @property
    def restart(self) -> int:
        return restart(self.example, self.start)


@dataclass(slots=True)
class Entry:
    """An example waiting for its place.

    Args:
        ordinal: where it stands in its lane's stream.
        example: the whole of it.
        offset: so many tokens of it are already in earlier rows.
        key: hash of epoch and document.
        length: tokens that the rest takes, with the ``<s>`` that a continued document may begin with.
        images: images in the rest.
    """

    ordinal: int
    example: Example
    offset: int = 0
    key: int = 0
    length: int = field(init=False)
    images: int = field(init=False)

    def __post_init__(self) -> None:
        self.length = len(self.example) - self.offset + self.restart
        self.images = count_images(self.example, self.offset, len(self.example))

    @property
    def restart(self) -> int:
        return restart(self.example, self.offset)

    def take(self, stop: int, source: int) -> Piece:
        """Split off everything before token ``stop``."""
        if stop == len(self.example):
            return Piece(self.example, source, self.offset, stop, self.images, self.key)
        images = count_images(self.example, self.offset, stop)
        piece = Piece(self.example, source, self.offset, stop, images, self.key)
        self.offset = stop
        self.__post_init__()
        return piece


def restart(example: Example, start: int) -> int:
    """1 where a ``<s>`` without loss is put before token ``start``; 0 where it stands in this token's place."""
    return int(start > 0 and not example.ends[start])


def count_images(example: Example, start: int, stop: int) -> int:
    """Images whose slots lie between tokens ``start`` and ``stop``."""
    return sum(placed.modality == "image" and start <= placed.start < stop for placed in example.placed)


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
        cut_all: cut any example at the end of a row, or only those that no row could hold (best_fit).
        sentences: cut at the end of a sentence, except in one that no row could hold.
    """

    row_tokens: int
    max_images: int
    cut_all: bool
    sentences: bool = False

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
                used = stop - entry.offset + entry.restart
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
        if (len(example) <= self.row_tokens and len(example.placed) <= self.max_images) or example.cuts[1:].all():
            return True
        bounds = np.flatnonzero(example.cuts)
        edges = np.concatenate([[0], bounds[bounds > 0], [len(example)]])
        stretches = np.diff(edges)
        stretches[1:] += 1  # the <s> of a continued document
        starts = [placed.start for placed in example.placed if placed.modality == "image"]
        images = np.diff(np.searchsorted(starts, edges))
        return int(stretches.max()) <= self.row_tokens and int(images.max()) <= self.max_images

    def at_turns(self, example: Example) -> Example:
        """The example, cut at its turns alone if that brings it into rows (best_fit cuts only what no row holds)."""
        fits = len(example) <= self.row_tokens and len(example.placed) <= self.max_images
        if self.cut_all or fits or not example.turns.any():
            return example
        kept = replace(example, cuts=example.turns)
        return kept if self.possible(kept) else example

    def may_cut(self, entry: Entry) -> bool:
        """Whether the entry may come in several pieces."""
        return self.cut_all or entry.length > self.row_tokens or entry.images > self.max_images

    def _cut(self, entry: Entry, space: Space) -> int | None:
        """The last place to cut ``entry`` so that its first part fits the space; None if that part is a scrap."""
        stop = min(entry.offset + space.tokens - entry.restart, len(entry.example))
        placed = entry.example.placed
        images = [one for one in placed if one.modality == "image" and one.start >= entry.offset]
        if len(images) > space.images:
            stop = min(stop, images[space.images].start - 1)
        if self.sentences and (end := self._sentence_end(entry, stop)) is not None:
            stop = end
        else:
            while entry.offset < stop < len(entry.example) and not entry.example.cuts[stop]:
                stop -= 1
        anything = self.sentences or space.tokens == self.row_tokens
        least = 1 if anything else min(MIN_PIECE, self.row_tokens // 2)
        return stop if stop >= entry.offset + least else None

    def _sentence_end(self, entry: Entry, limit: int) -> int | None:
        """The last end of a sentence up to ``limit``; the entry's offset if the next sentence needs an emptier row.

        None: no row holds the sentence, so that it may be cut anywhere.
        """
        ends = entry.offset + 1 + np.flatnonzero(entry.example.ends[entry.offset + 1 :])
        before = int(np.searchsorted(ends, limit, side="right"))
        if before:
            return int(ends[before - 1])
        end = int(ends[0]) if len(ends) else len(entry.example)
        fits = end - entry.offset + entry.restart <= self.row_tokens
        return entry.offset if fits and count_images(entry.example, entry.offset, end) <= self.max_images else None


@dataclass(slots=True)
class Row:
    """One packed row.

    Args:
        number: place of the row in the whole run; it belongs to lane ``number % lanes``.
        fields: int32 (7, T), in the order of :data:`FIELDS`; padding has document −1 and source −1.
        weight: float32 (T,).
        placed: what the encoders read, in order; where it stands is no longer said.
        order: hash of which pieces of which documents these are.
        lane_state: the lane's state after this row.
        skipped: bad samples met while making the row, by reason.
        fallbacks: stretches that were too short for their objective and stayed plain causal text.
        related: int8 (T,), see :class:`~kosmos_data.example.Example`; None: no example says.
        choices: questions whose answers are all known, by places in the row; None: there are none.
    """

    number: int
    fields: np.ndarray
    weight: np.ndarray
    placed: list[Placed]
    order: int
    documents: int
    lane_state: dict = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    fallbacks: int = 0
    related: np.ndarray | None = None
    choices: Choices | None = None


def fill_row(row: Row, pieces: Sequence[Piece], bos: int, document_mask: bool, eos: int | None = None) -> None:
    """Write ``pieces`` one behind the other into the arrays of ``row``.

    Args:
        row: an empty one.
        pieces: what it holds.
        bos: id of ``<s>``, which stands before each piece, in a row of sentences only before the first.
        document_mask: pieces, and the documents within one, do not see each other, and positions begin anew with each.
        eos: id of ``</s>`` for a row of sentences: each piece goes on behind what ended the one before.

    Raises:
        ValueError: an example of several documents without ``document_mask``.
    """
    lengths = [piece.length for piece in pieces]
    starts = [0, *itertools.accumulate(lengths)]
    end = starts[-1]
    fields = row.fields
    fields[TOKEN, :end] = _joined(pieces, "token", bos)
    fields[TOKEN, starts[:-1]] = bos
    if eos is not None:
        fields[TOKEN, starts[1:-1]] = [_closing(piece, eos) for piece in pieces[:-1]]
    fields[LABEL, :end] = _joined(pieces, "label", IGNORED)
    row.weight[:end] = _joined(pieces, "weight", 0.0)
    number = np.repeat(np.arange(len(pieces)), lengths)
    fields[DOCUMENT, :end] = _numbered(pieces, starts, document_mask)
    fields[SOURCE, :end] = np.array([piece.source for piece in pieces])[number]
    first = [int(piece.example.position[piece.start]) - piece.restart for piece in pieces]
    shifts = [begin - old for begin, old in zip([0] * len(pieces) if document_mask else starts, first, strict=False)]
    fields[POSITION, :end] = _joined(pieces, "position", first) + np.array(shifts)[number]
    fields[POSITION_IN_SPAN, :end] = _joined(pieces, "position_in_span", 0)
    block = _joined(pieces, "block", -1)
    if block.max() >= 0:
        block = _apart(block, starts)
    fields[BLOCK, :end] = block
    if any(piece.example.related is not None for piece in pieces):
        row.related = np.full(fields.shape[1], -1, dtype=np.int8)
        row.related[:end] = np.concatenate([_related(piece) for piece in pieces])
    if any(piece.example.choices for piece in pieces):
        placed = zip(starts, pieces, strict=False)
        row.choices = Choices.joined([(start, one.example.choices) for start, one in placed if one.example.choices])
    for piece in pieces:
        row.placed += [placed for placed in piece.example.placed if piece.start <= placed.start < piece.stop]


def _numbered(pieces: Sequence[Piece], starts: Sequence[int], document_mask: bool) -> np.ndarray | int:
    """The number of each token's document, those within a piece among them; without a mask all are one."""
    within = _joined(pieces, "document", 0)
    if document_mask:
        return _apart(within, starts)
    if within.any():
        raise ValueError(
            "answers of several tokens stand in documents that must not see each other: set data.document_mask: true"
        )
    return 0


def _closing(piece: Piece, eos: int) -> int:
    """What stands behind ``piece`` in a row of sentences: the token that ended its last sentence."""
    example, stop = piece.example, piece.stop
    return int(example.token[stop]) if stop < len(example) and example.ends[stop] else eos


def _related(piece: Piece) -> np.ndarray:
    """Which outputs of a piece say something of the persona; -1 at a ``<s>`` put before it, or where nobody says."""
    known = piece.example.related
    if known is None:
        return np.full(piece.length, -1, dtype=np.int8)
    return np.concatenate([np.full(piece.restart, -1, dtype=np.int8), known[piece.start : piece.stop]])


def _joined(pieces: Sequence[Piece], column: str, restart: float | Sequence[int]) -> np.ndarray:
    """A column of all pieces; ``restart`` (of each piece) stands at the ``<s>`` put before a continued document."""
    parts: list[np.ndarray | list[float]] = []
    for number, piece in enumerate(pieces):
        whole = getattr(piece.example, column)
        if piece.restart:
            parts.append([restart[number] if isinstance(restart, Sequence) else restart])
        parts.append(whole if piece.stop - piece.start == len(whole) else whole[piece.start : piece.stop])
    return np.concatenate(parts)


def _apart(block: np.ndarray, starts: Sequence[int]) -> np.ndarray:
    """Blocks, or documents, of different pieces, numbered through.

    The pieces begin at ``starts``, of which the last is the end.
    """
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
    return Row(number, fields, np.zeros(row_tokens, dtype=np.float32), [], order=0, documents=0)
