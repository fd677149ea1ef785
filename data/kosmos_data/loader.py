"""The front door: settings → an endless iterator of :class:`StepBatch`, the same for any number of ranks and workers.

Row n of the run belongs to lane n mod L, lane l to rank l mod world, and within a rank to one worker. Workers only
make whole rows; the main process puts them in order. Each row carries the state of its lane *after* the row, so the
state of a step is that of rows the trainer really received; what workers prepared beyond it is made again on resume.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from kosmos.modalities import MODALITIES

from .batch import StepBatch, collate, count_inputs, statistics
from .config import FREE_AT_RESUME, DataConfig, validate
from .lane import Lane, LaneState, Source
from .packing import Row
from .sentences import Sentences
from .workers import WorkerDied, WorkerPool

if TYPE_CHECKING:
    from kosmos.processing_kosmos import KosmosProcessor

STATE_VERSION = 3  # of what Loader.state and Lane.state hold; raise it whenever either changes, or what follows from it
_RESTARTS = 3  # a worker that dies is replaced; three deaths without one batch in between are a fault

logger = logging.getLogger(__name__)


def build_loader(
    config: DataConfig,
    processor: KosmosProcessor,
    rank: int = 0,
    world_size: int = 1,
    state: dict[str, Any] | None = None,
    checked: Collection[str] = (),
) -> Loader:
    """Open the corpora, check that everything fits together, and return the loader of one rank.

    Args:
        config: the ``data:`` section of the run.
        processor: tokenizer and image processor.
        rank, world_size: of the data-parallel group.
        state: where to go on: the ``state`` of a :class:`StepBatch`, merged over ranks; None: the beginning.
        checked: names of sources whose shards need no comparison with the index here, as another rank makes it.

    Raises:
        FileNotFoundError: a corpus or one of its shards is missing.
        ValueError: settings that do not fit, a damaged corpus, or a state of other settings (which are named).
    """
    validate(config, world_size)
    sources = [Source(source, config.seed, processor, source.name not in checked) for source in config.sources]
    stream = RankStream(config, sources, processor, rank, world_size)
    return Loader(stream, identity(config, sources, processor), state)


def rows_by_worker(config: DataConfig, world_size: int) -> list[int]:
    """Return how many rows of a step each worker of a rank makes; the longest decides how long the step takes."""
    own = [row % config.lane_count // world_size for row in range(0, config.rows_per_step, world_size)]
    return [sum(lane % config.workers == worker for lane in own) for worker in range(config.workers)]


def merge_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join the states that the ranks hold after the same step into one that any number of ranks can resume from.

    Raises:
        ValueError: the states are of different steps or settings.
    """
    first = states[0]
    for other in states[1:]:
        if (other["step"], other["identity"]) != (first["step"], first["identity"]):
            raise ValueError(f"loader states of different runs or steps: {first['step']} and {other['step']}")
    lanes = {lane: state for one in states for lane, state in one["lanes"].items()}
    return first | {"lanes": lanes}


def identity(config: DataConfig, sources: Sequence[Source], processor: KosmosProcessor) -> dict[str, Any]:
    """Everything that decides which rows come; a state may only be used with the same."""
    own = {kind.tokenizer: getattr(processor, kind.tokenizer) for kind in MODALITIES.values() if kind.tokenizer}
    sizes = {kind.size: getattr(processor, kind.size) for kind in MODALITIES.values() if kind.size}
    resolved = ("sources", "lanes")
    settings = {name: value for name, value in asdict(config).items() if name not in (*FREE_AT_RESUME, *resolved)}
    return settings | {
        "lanes": config.lane_count,
        "sources": [
            {"name": source.name, "weight": source.weight, "objective": source.objective} for source in config.sources
        ],
        "corpora": {source.name: source.corpus.fingerprint for source in sources},
        "tokenizer": _hash(processor.tokenizer.get_vocab()),
        **{name: None if tokenizer is None else _hash(tokenizer.get_vocab()) for name, tokenizer in own.items()},
        "images": _hash(processor.image_processor.to_dict()),
        **{name.removeprefix("num_"): places for name, places in sizes.items() if places is not None},
        **({} if processor.entities is None else {"entities": _hash(processor.entities)}),
        **({} if processor.personas == "entities" else {"personas": processor.personas}),
    }


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


class RankStream:
    """The lanes of one rank, dealt to its workers; can be sent to a worker process.

    Args:
        config: the loader's settings.
        sources: corpora with order and objective.
        processor: for the ids of ``<s>`` and padding, and for where sentences end.
        rank, world_size: of the data-parallel group.
    """

    def __init__(
        self, config: DataConfig, sources: Sequence[Source], processor: KosmosProcessor, rank: int, world_size: int
    ) -> None:
        self.config, self.sources = config, sources
        self.rank, self.world_size = rank, world_size
        self.bos, self.pad = processor.tokenizer.bos_token_id, processor.tokenizer.pad_token_id
        self.sentences = Sentences.of(processor.tokenizer) if config.packing == "sentences" else None
        self.first_step = 0
        self.lane_states: dict[str, LaneState] = {}

    def __call__(self, worker: int, workers: int) -> Iterator[list[Row]]:
        """The rows that ``worker`` of ``workers`` makes, step after step."""
        lanes: dict[int, Lane] = {}
        for step in itertools.count(self.first_step):
            yield [self._lane(lanes, lane).next_row() for lane in self.lanes_of(step, worker, workers)]

    def lanes_of(self, step: int, worker: int, workers: int) -> list[int]:
        """Lanes whose turn it is in ``step``, one entry per row, as far as they are this worker's."""
        count, first = self.config.lane_count, step * self.config.rows_per_step
        lanes = [(first + row) % count for row in range(self.config.rows_per_step)]
        mine = [lane for lane in lanes if lane % self.world_size == self.rank]
        return [lane for lane in mine if lane // self.world_size % workers == worker]

    def _lane(self, lanes: dict[int, Lane], number: int) -> Lane:
        if number not in lanes:
            state = self.lane_states.get(str(number))
            lanes[number] = Lane(self.config, self.sources, number, self.bos, self.pad, state, self.sentences)
        return lanes[number]


class Loader(Iterator[StepBatch]):
    """An endless iterator of :class:`StepBatch` for one rank; make it with :func:`build_loader`."""

    def __init__(self, stream: RankStream, identity: dict[str, Any], state: dict[str, Any] | None) -> None:
        self.stream, self.identity = stream, identity
        self.config = stream.config
        self.step = 0
        self._lanes: dict[str, LaneState] = {}
        self._pool: WorkerPool | None = None
        self._local: Iterator[list[Row]] | None = None
        if state is not None:
            self._load(state)

    def __next__(self) -> StepBatch:
        """The next step's batch.

        Raises:
            ValueError: too many bad samples.
            RuntimeError: workers keep dying.
        """
        rows = self._next_rows()
        while self.step - 1 in self.config.skip_steps:
            rows = self._next_rows()
        size = self.config.rows_per_micro_batch
        return StepBatch(
            step=self.step - 1,
            micro_batches=[collate(rows[start : start + size]) for start in range(0, len(rows), size)],
            state=self.state(),
            stats=statistics(rows, [source.name for source in self.config.sources]),
            rows=[row.number for row in rows],
            inputs=[count_inputs(row) for row in rows],
        )

    def state(self) -> dict[str, Any]:
        """Where this rank stands after the last batch; plain JSON, under 1 kB per lane."""
        return {"version": STATE_VERSION, "step": self.step, "identity": self.identity, "lanes": dict(self._lanes)}

    def close(self) -> None:
        """Stop the workers; going on after that starts them again."""
        if self._pool is not None:
            self._pool.close()
        self._pool = self._local = None

    def _next_rows(self) -> list[Row]:
        """All rows of the next step of this rank, in order."""
        rows = sorted(self._from_workers() if self.config.workers else self._from_here(), key=lambda row: row.number)
        self._lanes.update({str(row.number % self.config.lane_count): row.lane_state for row in rows})
        self.step += 1
        return rows

    def _from_here(self) -> list[Row]:
        if self._local is None:
            self._local = self._positioned()(0, 1)
        return next(self._local)

    def _from_workers(self) -> list[Row]:
        """The rows that the workers have made; workers that died are replaced, and lose nothing but time."""
        for attempt in itertools.count():
            try:
                self._pool = self._pool or WorkerPool(self._positioned(), self.config.workers)
                return [row for rows in self._pool.next_items() for row in rows]
            except WorkerDied as died:
                self.close()
                if attempt == _RESTARTS:
                    raise RuntimeError(
                        f"{died}, {_RESTARTS} times without a batch in between; out of memory?"
                    ) from died
                logger.warning("%s; starting the workers of rank %d again", died, self.stream.rank)
        raise AssertionError("unreachable")

    def _positioned(self) -> RankStream:
        """The stream, set to go on behind the last batch that was handed out."""
        self.stream.first_step, self.stream.lane_states = self.step, dict(self._lanes)
        return self.stream

    def _load(self, state: dict[str, Any]) -> None:
        if state.get("version") != STATE_VERSION:
            raise ValueError(
                f"the loader's state is of version {state.get('version')}, this program reads version {STATE_VERSION}: "
                "it would order the data otherwise; go on with the version that saved it, or begin a new run from its "
                "weights"
            )
        mine = json.loads(json.dumps(self.identity))
        saved = json.loads(json.dumps(state["identity"]))
        if changed := sorted(name for name in mine.keys() | saved.keys() if mine.get(name) != saved.get(name)):
            what = ", ".join(f"{name} ({saved.get(name)} → {mine.get(name)})" for name in changed)
            raise ValueError(f"the loader's state was saved with other settings: {what}")
        seen = min(self.config.lane_count, state["step"] * self.config.rows_per_step)
        if missing := [lane for lane in range(seen) if str(lane) not in state["lanes"]]:
            raise ValueError(f"the loader's state lacks lanes {missing[:8]}: merge_states joins those of all ranks")
        self.step = state["step"]
        world, rank = self.stream.world_size, self.stream.rank
        self._lanes = {lane: one for lane, one in state["lanes"].items() if int(lane) % world == rank}
