"""The loader's settings, the ``data:`` section of a run's YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kosmos.short_forms import short

FREE_AT_RESUME = ("workers", "rows_per_micro_batch", "skip_steps", "max_bad_rate")
"""Settings that a resumed run may change: they do not decide which rows come."""
PACKING = ("sentences", "best_fit", "cut")


@dataclass
class SourceConfig:
    """One corpus of the mix.

    Args:
        name: what it is called in logs and in the loader's state.
        shards: folder (or fsspec URL) that holds ``index.json``.
        weight: share of the tokens, relative to the other sources.
        objective: ``name`` of an objective and its options, for example ``{name: causal, loss: supervised}``;
            a name alone will do.
    """

    name: str
    shards: str
    weight: float = 1.0
    objective: dict[str, Any] = field(default_factory=lambda: {"name": "causal"}, metadata=short("name"))


@dataclass
class DataConfig:
    """What the model reads, in which order, in what shape.

    Args:
        sources: the corpora to mix.
        row_tokens: T, tokens per row.
        rows_per_step: rows of one optimiser step over all ranks.
        rows_per_micro_batch: B, rows of one forward pass on one rank.
        lanes: logical streams that the rows are dealt to; fixed for the life of a run and independent of ranks and
            workers. Must divide ``rows_per_step`` or be a multiple of it. None: ``rows_per_step``.
        packing: ``sentences`` fills a row with whole sentences of one document after the other (KOSMOS-1's
            "full-sentence"); ``best_fit`` keeps every document that fits a row in one piece and looks for the one that
            fills the row best; ``cut`` cuts a document wherever a row ends.
        document_mask: tokens see only their own document, and positions begin anew with each; between sentences-packed
            documents the ``</s>`` belongs to the one behind it. KOSMOS-1 does neither: False.
        max_images_per_row: most images in a row, a bound on the memory of the vision encoder.
        workers: loader processes per rank; 0 loads in the training process. A number that divides a rank's rows of a
            step gives each the same work. A script of your own that uses them needs
            the usual ``if __name__ == "__main__":`` around its main program.
        seed: of the order of documents and of every draw of an objective.
        temperature: sharpens (<1) or flattens (>1) the weights: share ∝ weight^(1/temperature).
        max_bad_rate: the run stops when more than this share of a lane's samples cannot be used.
        skip_steps: steps whose batch is left out (after a loss spike); the batches behind them move up.
    """

    sources: list[SourceConfig]
    row_tokens: int = 2048
    rows_per_step: int = 64
    rows_per_micro_batch: int = 8
    lanes: int | None = None
    packing: str = "best_fit"
    document_mask: bool = True
    max_images_per_row: int = 64
    workers: int = 0
    seed: int = 0
    temperature: float = 1.0
    max_bad_rate: float = 0.01
    skip_steps: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.packing == "concat":
            raise ValueError("data.packing: 'concat' is called 'cut' now (it cuts wherever a row ends): write cut")
        if self.packing not in PACKING:
            raise ValueError(f"data.packing={self.packing!r}: choose one of {', '.join(PACKING)}")

    @property
    def lane_count(self) -> int:
        return self.rows_per_step if self.lanes is None else self.lanes


def validate(config: DataConfig, world_size: int = 1) -> None:
    """Check that the numbers fit together.

    Raises:
        ValueError: naming the setting, its value and what would fit.
    """
    if not config.sources:
        raise ValueError("data.sources is empty: name at least one corpus")
    names = [source.name for source in config.sources]
    if len(set(names)) != len(names):
        raise ValueError(f"data.sources: two sources have the same name in {names}")
    for source in config.sources:
        if not source.weight > 0:
            raise ValueError(f"source {source.name!r}: weight must be above 0, got {source.weight}")
    for setting in ("row_tokens", "rows_per_step", "rows_per_micro_batch", "max_images_per_row", "lanes"):
        value = getattr(config, setting)
        if value is not None and value < 1:
            raise ValueError(f"data.{setting} must be at least 1, got {value}")
    if config.workers < 0:
        raise ValueError(f"data.workers must be at least 0, got {config.workers}")
    if world_size < 1:
        raise ValueError(f"a run needs at least 1 process or GPU, got {world_size}")
    if not 0 <= config.max_bad_rate < 1:
        raise ValueError(f"data.max_bad_rate must be at least 0 and below 1, got {config.max_bad_rate}")
    if not config.temperature > 0:
        raise ValueError(f"data.temperature must be above 0, got {config.temperature}")
    _validate_rows(config, world_size)


def _validate_rows(config: DataConfig, world_size: int) -> None:
    rows, lanes = config.rows_per_step, config.lane_count
    if rows % lanes and lanes % rows:
        raise ValueError(f"data.lanes={lanes} must divide data.rows_per_step={rows} or be a multiple of it")
    if min(rows, lanes) % world_size:
        raise ValueError(
            f"{world_size} ranks cannot share data.rows_per_step={rows} over data.lanes={lanes} evenly; "
            f"make both multiples of {world_size}"
        )
    if (rows // world_size) % config.rows_per_micro_batch:
        raise ValueError(
            f"data.rows_per_step={rows} gives each of {world_size} ranks {rows // world_size} rows, "
            f"not a multiple of data.rows_per_micro_batch={config.rows_per_micro_batch}"
        )
