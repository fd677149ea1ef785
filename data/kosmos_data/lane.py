"""A lane: an endless stream of rows that depends on nothing but the settings and its number.

Lanes are what makes loading elastic. Row n of a run belongs to lane n mod L, whatever rank or worker makes it, and a
lane's whole state is a few numbers: per source the next ordinal, the tokens owed, and which documents are open. A lane
that is rebuilt from its state reads those documents again and goes on with exactly the row that would have come. Where
a schedule goes on to its next stage, the open documents are made again by it, so that no row mixes stages.

A row's plan says how many tokens of which source it should hold (:mod:`kosmos_data.mixing`); documents seldom fit it
exactly, and what a source got too little or too much is owed to it, or by it, in the lane's next rows. No lane is ever
off by more than about a row, however long the run, and most are by a fraction of one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

from . import objectives
from .config import DataConfig, SourceConfig
from .errors import TOO_LONG, BadSample
from .mixing import quotas, shares
from .order import SourceOrder, mix
from .packing import POOL, Entry, Packer, Piece, Row, Space, empty_row, fill_row
from .reader import Corpus
from .sentences import Sentences

if TYPE_CHECKING:
    from kosmos.processing_kosmos import KosmosProcessor

LaneState = dict[str, Any]
OpenDocument: TypeAlias = int | list[int]
"""How far back its ordinal is; with the offset up to which it is used, if not 0."""

_FEW_BAD = 16  # so many bad samples are no reason to stop yet
_PATIENCE = 8  # a document is taken before all others once its pool has been refilled so many times


class Source:
    """A corpus with its order and objective, shared by the lanes of one process.

    Args:
        config: name, shards and objective.
        seed: of the run.
        processor: tokenizer and image processor.
        check: whether the sizes of the shards are compared with the index.
    """

    def __init__(self, config: SourceConfig, seed: int, processor: KosmosProcessor, check: bool = True) -> None:
        self.name, self.config, self.processor = config.name, config, processor
        self.corpus = Corpus(config.shards, check)
        self.order = SourceOrder(self.corpus.counts, seed, config.name)
        try:
            self.objective = objectives.from_settings(config.objective, processor)
        except ValueError as error:
            raise ValueError(f"source {self.name!r}: {error}") from error


class SourceStream:
    """One source as one lane reads it.

    Args:
        source: what is read.
        lane, lanes: the lane's number and how many there are.
        pool_size: examples that may be open at a time.
        packer: asked whether an example can be packed at all.
        sentences: marks where the sentences of an example end; None: rows do not ask for it.
    """

    def __init__(
        self, source: Source, lane: int, lanes: int, pool_size: int, packer: Packer, sentences: Sentences | None
    ) -> None:
        self.source, self.lane, self.lanes = source, lane, lanes
        self.pool_size, self.packer, self.sentences = pool_size, packer, sentences
        self.cursor = 0
        self.owed = 0.0
        self.step = 0
        self.pool: list[Entry] = []
        self.bad: Counter[str] = Counter()
        self.last_bad = ""

    def advance(self, step: int) -> None:
        """Go to ``step``. Where a stage of a schedule ends, the open documents are made again by the next one.

        One of them that is in earlier rows in part comes again from its beginning: an offset means nothing in another
        objective's example.
        """
        objective, before, self.step = self.source.objective, self.step, step
        if objective.at(step) is not objective.at(before):
            waiting, self.pool = self.pool, []
            for entry in waiting:
                self._open(entry.ordinal)

    def fill(self, on_bad: Callable[[], None]) -> Sequence[Entry]:
        """The pool, oldest first, topped up with good samples; ``on_bad`` is called after each bad one is counted.

        A document that nothing has called for in a long time is the only one offered.
        """
        while len(self.pool) < self.pool_size:
            self.cursor += 1  # a bad sample uses up its ordinal, so a resumed run skips the same ones
            if not self._open(self.cursor - 1):
                on_bad()
        overdue = self.cursor - self.pool[0].ordinal > _PATIENCE * self.pool_size
        return self.pool[:1] if overdue else self.pool

    def place(self, ordinal: int) -> tuple[int, int]:
        """(epoch, document) at ``ordinal`` of this lane."""
        return self.source.order[self.lane + ordinal * self.lanes]

    def entry(self, ordinal: int, offset: int = 0) -> Entry:
        """The example at ``ordinal`` as of the present step; BadSample if its document cannot be used."""
        epoch, index = self.place(ordinal)
        document = self.source.corpus[index]
        key = mix(self.source.order.key, epoch, index)
        try:
            example = self.source.objective(document, key, self.step)
        except BadSample as error:
            raise BadSample(error.reason, error.of(document.key)) from error
        example = self.packer.at_turns(example)
        if not self.packer.possible(example):
            raise BadSample(TOO_LONG, f"{document.key}: {len(example)} tokens")
        if self.sentences is not None:
            example = replace(example, ends=self.sentences.ends(example))
        return Entry(ordinal, example, offset, key)

    def take(self, index: int, stop: int, number: int) -> Piece:
        """Move the first part of a pool entry, or all of it, into a row; ``number`` is the source's."""
        entry = self.pool[index]
        piece = entry.take(stop, number)
        if stop == len(entry.example):
            del self.pool[index]
        return piece

    def state(self) -> list[Any]:
        """[next ordinal, tokens owed, open documents]."""
        return [self.cursor, self.owed, [self._open_state(entry) for entry in self.pool]]

    def restore(self, state: Sequence[Any], step: int) -> None:
        """Go back to a state after a row of ``step``; open documents are read again."""
        self.step = step
        self.cursor, self.owed, opened = state
        self.pool = [self._reopen(document) for document in opened]

    def _open(self, ordinal: int) -> bool:
        """Take a document into the pool; False if it is bad, which is counted."""
        try:
            self.pool.append(self.entry(ordinal))
        except BadSample as error:
            self.bad[error.reason] += 1
            self.last_bad = f"{self.source.corpus.shard_of(self.place(ordinal)[1])}: {error}"
            return False
        return True

    def _open_state(self, entry: Entry) -> OpenDocument:
        back = self.cursor - entry.ordinal
        return [back, entry.offset] if entry.offset else back

    def _reopen(self, document: OpenDocument) -> Entry:
        back, offset = (document, 0) if isinstance(document, int) else document
        try:
            return self.entry(self.cursor - back, offset)
        except BadSample as error:
            _, index = self.place(self.cursor - back)
            shard = self.source.corpus.shard_of(index)
            raise ValueError(
                f"{shard} has changed since the run was saved, which had begun a document of it: {error}; bring the "
                f"shard back, or start another run"
            ) from error


class Lane:
    """Rows of one lane.

    Args:
        config: the loader's settings.
        sources: shared by all lanes of the process.
        number: which lane, 0 ≤ number < ``config.lane_count``.
        bos, pad: token ids.
        state: where to go on; None: the beginning.
        sentences: of the tokenizer, for rows of whole sentences; None for other rows.
    """

    def __init__(
        self,
        config: DataConfig,
        sources: Sequence[Source],
        number: int,
        bos: int,
        pad: int,
        state: LaneState | None = None,
        sentences: Sentences | None = None,
    ) -> None:
        self.config, self.number, self.bos, self.pad = config, number, bos, pad
        self.eos = None if sentences is None else sentences.eos
        self.packer = Packer(
            config.row_tokens,
            config.max_images_per_row,
            cut_all=config.packing != "best_fit",
            sentences=config.packing == "sentences",
        )
        stream = (number, config.lane_count, POOL[config.packing], self.packer, sentences)
        self.streams = [SourceStream(source, *stream) for source in sources]
        self.share = shares([source.weight for source in config.sources], config.temperature)
        self.rows = 0
        self.bad = 0
        if state is not None:
            self.rows, self.bad = state["rows"], state["bad"]
            for one, saved in zip(self.streams, state["sources"], strict=True):
                one.restore(saved, self._step(self.rows - 1))

    def next_row(self) -> Row:
        """Make the next row.

        Raises:
            ValueError: too many samples cannot be used; names the last one and its shard.
        """
        row = empty_row(self.number + self.rows * self.config.lane_count, self.config.row_tokens, self.pad)
        for stream in self.streams:
            stream.advance(self._step(self.rows))
        pieces = self._choose_pieces(row.number)
        assert pieces, "an empty row takes any example that the packer calls possible"
        fill_row(row, pieces, self.bos, self.config.document_mask, self.eos)
        row.order = mix(row.number, *(n for piece in pieces for n in (piece.key, piece.start, piece.stop)))
        row.documents = len(pieces)
        row.fallbacks = sum(piece.example.fallback for piece in pieces if piece.start == 0)
        row.skipped = self._collect_skipped()
        self.rows += 1
        row.lane_state = {"rows": self.rows, "bad": self.bad, "sources": [stream.state() for stream in self.streams]}
        return row

    def _step(self, row: int) -> int:
        """The step of the run that this lane's row number ``row`` belongs to."""
        return (self.number + row * self.config.lane_count) // self.config.rows_per_step

    def _choose_pieces(self, number: int) -> list[Piece]:
        """Fill a row as its plan and what is owed say; keep account of the difference."""
        config = self.config
        plan = quotas(number, config.rows_per_step, config.row_tokens, self.share)
        goals = [stream.owed + quota for stream, quota in zip(self.streams, plan, strict=True)]
        main = goals.index(max(goals))
        space = Space(config.row_tokens, config.max_images_per_row)
        pieces: list[Piece] = []
        while space.tokens > 0 and (choice := self._choose(space, goals, main)) is not None:
            source, (index, stop) = choice
            piece = self.streams[source].take(index, stop, source)
            pieces.append(piece)
            goals[source] -= piece.length
            space.tokens -= piece.length
            space.images -= piece.images
        # Padding is nobody's: taken off by share, so that it is tokens, not places, that keep to the weights.
        for stream, goal, part in zip(self.streams, goals, self.share, strict=True):
            stream.owed = round(goal - part * space.tokens, 3)
        return pieces

    def _choose(self, space: Space, goals: Sequence[float], main: int) -> tuple[int, tuple[int, int]] | None:
        """(source, choice of the packer) of the next piece.

        The row opens with the oldest document of its ``main`` source, if that fits whole. Then the others get what they
        are owed, as well as whole documents can, and the main source the rest. A gap that it cannot fill goes to the
        source that is owed most of those that can; not to one that is a whole row ahead of its share, as a source of
        short documents soon is when only they fit into gaps. Rather is the gap padded.
        """
        packer = self.packer
        pools = [stream.fill(self._check_rate) for stream in self.streams]
        is_empty = space.tokens == packer.row_tokens
        if is_empty and not packer.may_cut(pools[main][0]) and (found := packer.oldest(pools[main], space)):
            return main, found
        owed = [
            (source, found)
            for source, pool in enumerate(pools)
            if source != main and goals[source] > 0 and (found := packer.nearest(pool, space, goals[source]))
        ]
        if owed:
            return max(owed, key=lambda choice: pools[choice[0]][choice[1][0]].length)
        if is_empty and (found := packer.oldest(pools[main], space)):
            return main, found
        if found := packer.longest(pools[main], space):
            return main, found
        others = [
            (source, found)
            for source, pool in enumerate(pools)
            if goals[source] > -packer.row_tokens and (found := packer.longest(pool, space))
        ]
        return max(others, key=lambda choice: goals[choice[0]], default=None)

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
