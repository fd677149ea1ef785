"""``kosmos train CONFIG --dry-run``: everything that can be known before a GPU is paid for.

Settings are checked, corpora opened and a few batches read, weights and sample pictures looked for, the model is built
on the meta device (no memory) and asked what of the batches it would refuse, and a table says how large it is, what a
GPU must hold, and how long the run takes at an assumed utilisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from kosmos.cost import PEAKS, Cost, device_peak, encoded_bytes, model_cost
from kosmos.loading import encoder_folder
from kosmos.modalities import MODALITIES
from kosmos.plain import escape
from kosmos.tuning import attach
from kosmos_data import DataConfig
from kosmos_data.loader import rows_by_worker

from .build import build_config, build_processor
from .config import TrainConfig
from .corpora import describe
from .engine import dtype_of
from .optim import freeze, parameter_groups
from .samples import encode_prompts
from .simulate import describe_worlds, memory_of
from .trackers import require

PROBE_BATCHES = 2


@dataclass(frozen=True)
class Plan:
    """What a run will be."""

    cost: Cost
    tokens_per_step: float
    """Mean over the batches read, without padding."""
    images_per_step: float
    packed: float
    """Share of the positions that are no padding."""
    micro_batches: int
    memory: dict[str, float]
    """Bytes on a GPU by what they hold."""
    flops_per_step: float


def plan(config: TrainConfig, gpus: int) -> Plan:
    """Check a run on ``gpus`` processes and work out what it costs.

    Raises:
        ValueError, OSError: what would stop the run, with the reason.
    """
    config.check(gpus)
    processor = build_processor(config)
    batches = _probe(config.data, processor)
    held_out = _probe(config.eval.data, processor) if config.eval.every and config.eval.data else []
    with torch.device("meta"):
        from kosmos import KosmosForConditionalGeneration

        model: Any = KosmosForConditionalGeneration(build_config(config.model, processor))
    for micro in (micro for batch in batches + held_out for micro in batch.micro_batches):
        model.model.check(**micro)
    _look_ahead(config, processor)
    if config.tuning is not None:
        with torch.device("meta"):
            attach(model, config.tuning)
    freeze(model.to(dtype_of(config.engine)), config.model.freeze)
    parameter_groups(model, config.optim)
    cost = model_cost(model, config.data.row_tokens)
    tokens = sum(batch.stats["tokens"] for batch in batches) / len(batches)
    images = sum(batch.stats["images"] for batch in batches) / len(batches)
    micro_batches = [micro for batch in batches for micro in batch.micro_batches]
    units = {name: sum(map(kind.count, micro_batches)) / len(batches) for name, kind in MODALITIES.items()}
    each = {name: count / len(micro_batches) * len(batches) for name, count in units.items()}
    supervised = sum(batch.stats["supervised"] for batch in batches) / len(batches)
    return Plan(
        cost=cost,
        tokens_per_step=tokens,
        images_per_step=images,
        packed=tokens / (config.data.rows_per_step * config.data.row_tokens),
        micro_batches=config.micro_batches(gpus),
        memory=memory_of(config, model, cost, gpus, encoded_bytes(model.model, each)),
        flops_per_step=cost.flops(tokens, units, supervised),
    )


def _look_ahead(config: TrainConfig, processor: Any) -> None:
    """What the run would only miss after its start: weights, tasks, sample pictures, trackers' packages."""
    from kosmos.encoder_weights import find_weights

    for weights in config.model.named_weights.values():
        find_weights(encoder_folder(weights))
    if config.eval.tasks_every:
        from .evaluation import check_tasks

        check_tasks(config.eval)
    encode_prompts(config.samples, processor)
    for name in config.log.tracking:
        require(name)


def dry_run(config: TrainConfig, gpus: int, done: int = 0, utilisation: float = 0.4) -> None:
    """Print the plan of a run of which so many steps are ``done``."""
    from rich.console import Console
    from rich.table import Table

    found = plan(config, gpus)
    table = Table(
        "", "", show_header=False, title=f"GPUs: {gpus}, ZeRO {config.engine.zero_stage}, {config.engine.precision}"
    )
    for part, count in found.cost.parameters.items():
        frozen = found.cost.frozen[part]
        note = "" if not frozen else ", frozen" if frozen == count else f", {frozen:,} of them frozen"
        table.add_row(part, f"{count:,} parameters{note}")
    table.add_row("total", f"{sum(found.cost.parameters.values()):,}, {found.cost.trainable:,} trainable")
    table.add_section()
    for name, size in found.memory.items():
        table.add_row(name, f"{size / 2**30:.2f} GiB a GPU")
    table.add_row("memory", f"{sum(found.memory.values()) / 2**30:.2f} GiB a GPU")
    table.add_section()
    for name, value in _schedule(config, found, gpus, done, utilisation).items():
        table.add_row(escape(name), escape(value))
    Console(emoji=False).print(table)


def _schedule(config: TrainConfig, found: Plan, gpus: int, done: int, utilisation: float) -> dict[str, str]:
    data, own_peak = config.data, device_peak()
    units = {MODALITIES[name].unit or name: flops for name, flops in found.cost.unit_flops.items()}
    flops = {"token": found.cost.token_flops, **units, "step": found.flops_per_step}
    peak, whose = (PEAKS["H100"], "an H100's") if own_peak is None else (own_peak, "this GPU's")
    seconds, left = found.flops_per_step / (gpus * peak * utilisation), max(0, config.steps - done)
    return {
        **({"may run on": f"{describe_worlds(config, gpus)} GPUs"} if gpus > 1 else {}),
        "a step": f"{data.rows_per_step} rows of {data.row_tokens} = {found.tokens_per_step:,.0f} tokens, "
        f"{found.images_per_step:,.0f} images; {found.micro_batches} micro-batches of {data.rows_per_micro_batch} rows",
        **_workers(config, gpus),
        "packing": f"{100 * found.packed:.1f} % of the positions are tokens",
        "FLOPs": ", ".join(f"{count:.3g} a {unit}" for unit, count in flops.items()),
        "the run": f"{config.steps:,} steps, {config.steps * found.tokens_per_step / 1e9:.3g} B tokens",
        "to go": f"{left:,} steps, {left * found.tokens_per_step / 1e9:.3g} B tokens, "
        f"{seconds * left / 86400:.3g} days",
        "at": f"{seconds:.3g} s a step, {100 * utilisation:.0f} % of {whose} {peak / 1e12:.0f} TFLOP/s",
    }


def _workers(config: TrainConfig, gpus: int) -> dict[str, str]:
    """What to say of loader workers that have unequal shares: the one with most rows sets the pace."""
    shares = rows_by_worker(config.data, gpus)
    if not shares or min(shares) == max(shares):
        return {}
    even = max(count for count in range(1, len(shares) + 1) if sum(shares) % count == 0)
    shown = ", ".join(map(str, shares))
    return {"loader": f"rows of a step by worker of a rank: {shown}; data.workers={even} would share evenly"}


def _probe(config: DataConfig, processor: Any) -> list[Any]:
    """The first batches, read by one process: proof that shards, objective and tokenizer fit.

    Raises:
        ValueError: more lanes than documents.
    """
    from kosmos_data import build_loader

    lanes = config.lane_count
    counts = {name: found["documents"] for name, found in describe(config).items()}
    too_few = {name: count for name, count in counts.items() if count < lanes}
    if too_few:
        raise ValueError(
            f"data.lanes={lanes} streams cannot share {too_few} documents: lower data.lanes or bring more documents"
        )
    loader = build_loader(config, processor)
    batches = [next(loader) for _ in range(PROBE_BATCHES)]
    loader.close()
    return batches
