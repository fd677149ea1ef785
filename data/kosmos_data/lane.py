"""A lane: an endless stream of rows that depends on nothing but the settings and its number.

Lanes are what makes loading elastic. Row n of a run belongs to lane n mod L, whatever rank or worker makes it, and a
lane's whole state is a few numbers: per source the next ordinal, the tokens used, and which documents are open. A lane
that is rebuilt from its state reads those documents again and goes on with exactly the row that would have come.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from . import objectives
from .config import DataConfig, SourceConfig
from .errors import TOO_LONG, BadSample
from .mixing import by_need, head_start, shares
from .objectives import Objective
from .objectives.schedule import Schedule
from .order import SourceOrder, mix
from .packing import POOL, Entry, Packer, Piece, Row, Space, empty_row, fill_row
from .reader import Corpus

if TYPE_CHECKING:
    from kosmos.processing_kosmos import KosmosProcessor

LaneState = dict[str, Any]

_FEW_BAD = 16  # so many bad samples are no reason to stop yet


class Source:
    """A corpus with its order and objective, shared by the lanes of one process.

    Args:
        config: name, shards and objective.
        seed: of the run.
        processor: tokenizer and image processor.
    """

    def __init__(self, config: SourceConfig, seed: int, processor: KosmosProcessor) -> None:
        self.name, self.config, self.processor = config.name, config, processor
        self.corpus = Corpus(config.shards)
        self.order = SourceOrder(self.corpus.counts, seed, config.name)
        self.objective = self._build_objective()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "objective"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.objective = self._build_objective()  # objectives are closures: made anew in each worker

    def _build_objective(self) -> Objective:
        try:
            return objectives.from_settings(self.config.objective, self.processor)
        except ValueError as error:
            raise ValueError(f"source {self.name!r}: {error}") from error


class SourceStream:
    """One source as one lane reads it.

    Args:
        source: what is read.
        lane, lanes: the lane's number and how many there are.
        pool_size: examples that may be open at a time.
        packer: asked whether an example can be packed at all.
    """

    def __init__(self, source: Source, lane: int, lanes: int, pool_size: int, packer: Packer) -> None:
        self.source, self.lane, self.lanes = source, lane, lanes
        self.pool_size, self.packer = pool_size, packer
        self.cursor = 0
        self.used = 0
        self.step = 0
        self.pool: list[Entry] = []
        self.bad: Counter[str] = Counter()
        self.last_bad = ""

    def fill(self, on_bad: Callable[[], None]) -> Sequence[Entry]:
        """The pool, topped up with the next good samples; ``on_bad`` is called after each bad one is counted."""
        while len(self.pool) < self.pool_size:
            ordinal = self.cursor
            self.cursor += 1  # a bad sample uses up its ordinal, so a resumed run skips the same ones
            try:
                self.pool.append(self.entry(ordinal, self.step))
            except BadSample as error:
                self.bad[error.reason] += 1
                self.last_bad = f"{self.source.corpus.shard_of(self.place(ordinal)[1])}: {error}"
                on_bad()
        return self.pool

    def place(self, ordinal: int) -> tuple[int, int]:
        """(epoch, document) at ``ordinal`` of this lane."""
        return self.source.order[self.lane + ordinal * self.lanes]

    def entry(self, ordinal: int, step: int, offset: int = 0) -> Entry:
        """The example at ``ordinal``, read in ``step`` of the run; BadSample if its document cannot be used."""
        epoch, index = self.place(ordinal)
        document = self.source.corpus[index]
        key = mix(self.source.order.key, epoch, index)
        objective = self.source.objective
        example = (objective.at(step) if isinstance(objective, Schedule) else objective)(document, key)
        if not self.packer.possible(example):
            raise BadSample(TOO_LONG, f"{document.key}: {len(example)} tokens")
        return Entry(ordinal, example, offset, key, step)

    def take(self, index: int, stop: int, number: int) -> Piece:
        """Move the first part of a pool entry, or all of it, into a row; ``number`` is the source's."""
        entry = self.pool[index]
        piece = entry.take(stop, number)
        if stop == len(entry.example):
            del self.pool[index]
        self.used += piece.length
        return piece

    def state(self) -> list[Any]:
        """[next ordinal, tokens used, then (how far back, offset, step read in) of every open document]."""
        return [self.cursor, self.used, *(n for e in self.pool for n in (self.cursor - e.ordinal, e.offset, e.step))]

    def restore(self, state: Sequence[int]) -> None:
        """Go back to a state; open documents are read again."""
        self.cursor, self.used, *opened = state
        self.pool = [
            self.entry(self.cursor - back, step, offset)
            for back, offset, step in zip(opened[::3], opened[1::3], opened[2::3], strict=True)
        ]


class Lane:
    """Rows of one lane.

    Args:
        config: the loader's settings.
        sources: shared by all lanes of the process.
        number: which lane, 0 ≤ number < ``config.lane_count``.
        bos, pad: token ids.
        state: where to go on; None: the beginning.
    """

    def __init__(
        self,
        config: DataConfig,
        sources: Sequence[Source],
        number: int,
        bos: int,
        pad: int,
        state: LaneState | None = None,
    ) -> None:
        self.config, self.number, self.bos, self.pad = config, number, bos, pad
        self.packer = Packer(config.row_tokens, config.max_images_per_row, cut_all=config.packing == "concat")
        pool = POOL[config.packing]
        self.streams = [SourceStream(source, number, config.lane_count, pool, self.packer) for source in sources]
        self.share = shares([source.weight for source in config.sources], config.temperature)
        self.head_start = head_start(number, config.lane_count, len(sources), config.row_tokens)
        self.rows = 0
        self.bad = 0
        if state is not None:
            self.rows, self.bad = state["rows"], state["bad"]
            for stream, saved in zip(self.streams, state["sources"], strict=True):
                stream.restore(saved)

    def next_row(self) -> Row:
        """Make the next row.

        Raises:
            ValueError: too many samples cannot be used; names the last one and its shard.
        """
        row = empty_row(self.number + self.rows * self.config.lane_count, self.config.row_tokens, self.pad)
        for stream in self.streams:
            stream.step = row.number // self.config.rows_per_step
        pieces = self._choose_pieces()
        assert pieces, "an empty row takes any example that the packer calls possible"
        fill_row(row, pieces, self.bos, self.config.document_mask)
        row.order = mix(row.number, *(n for piece in pieces for n in (piece.key, piece.start, piece.stop)))
        row.documents = len(pieces)
        row.fallbacks = sum(piece.example.fallback for piece in pieces if piece.start == 0)
        row.skipped = self._collect_skipped()
        self.rows += 1
        row.lane_state = {"rows": self.rows, "bad": self.bad, "sources": [stream.state() for stream in self.streams]}
        return row

    def _choose_pieces(self) -> list[Piece]:
        pieces: list[Piece] = []
        space = Space(self.config.row_tokens, self.config.max_images_per_row)
        while space.tokens > 0 and (piece := self._next_piece(space)) is not None:
            pieces.append(piece)
            space.tokens -= piece.length
            space.images -= piece.images
        return pieces

    def _next_piece(self, space: Space) -> Piece | None:
        """From the source that is furthest behind its share; from another when nothing of it fits."""
        used = [stream.used + ahead for stream, ahead in zip(self.streams, self.head_start, strict=True)]
        choices = [self.packer.choose(stream.fill(self._check_rate), space) for stream in self.streams]
        coming = [
            0 if choice is None else choice[1] - stream.pool[choice[0]].offset
            for stream, choice in zip(self.streams, choices, strict=True)
        ]
        for source in by_need(self.share, used, coming):
            if (choice := choices[source]) is not None:
                return self.streams[source].take(*choice, source)
        return None

    def _check_rate(self) -> None:
        bad = self.bad + sum(stream.bad.total() for stream in self.streams)
        read = sum(stream.cursor for stream in self.streams)
        if bad > _FEW_BAD and bad > self.config.max_bad_rate * read:
            last = "; ".join(stream.last_bad for stream in self.streams if stream.last_bad)
            raise ValueError(
                f"{bad} of {read} samples of lane {self.number} cannot be used, more than data.max_bad_rate="
                f"{self.config.max_bad_rate}; last per source: {last}"
            )

    def _collect_skipped(self) -> dict[str, int]:
        skipped: Counter[str] = Counter()
        for stream in self.streams:
            skipped.update(stream.bad)
            stream.bad.clear()
        self.bad += skipped.total()
        return dict(skipped)
