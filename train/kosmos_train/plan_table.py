"""What ``--dry-run`` prints: the plan of a run as a table, in units that fit its size."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

from kosmos.cost import PEAKS, Cost, device_peak
from kosmos.modalities import MODALITIES
from kosmos.plain import counted, escape
from kosmos_data import DataConfig
from kosmos_data.loader import rows_by_worker

from .config import TrainConfig
from .simulate import describe_worlds


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
    passes: dict[str, float] = field(default_factory=dict)
    """Source → how often the run reads each of its documents."""
    crowded: float = 0.0
    """Share of the rows that hold as many images as they may."""
    assumed: str = ""
    """What is assumed where no batch was read."""


def show(config: TrainConfig, found: Plan, gpus: int | None, done: int, utilisation: float) -> None:
    """Print the table of a plan; ``gpus`` None: it is for the CPU of this machine."""
    from rich.console import Console
    from rich.table import Table

    where, of_each = ("this CPU", "") if gpus is None else (f"GPUs: {gpus}", " a GPU")
    table = Table(
        "", "", show_header=False, title=f"{where}, ZeRO {config.engine.zero_stage}, {config.engine.precision}"
    )
    for part, count in found.cost.parameters.items():
        frozen = found.cost.frozen[part]
        note = "" if not frozen else ", frozen" if frozen == count else f", {frozen:,} of them frozen"
        table.add_row(part, f"{count:,} parameters{note}")
    table.add_row("total", f"{sum(found.cost.parameters.values()):,}, {found.cost.trainable:,} trainable")
    table.add_section()
    for name, size in found.memory.items():
        table.add_row(name, f"{_size(size)}{of_each}")
    table.add_row("memory", f"{_size(sum(found.memory.values()))}{of_each}")
    table.add_section()
    for name, value in _schedule(config, found, gpus, done, utilisation).items():
        table.add_row(escape(name), escape(value))
    Console(emoji=False).print(table)


def _schedule(config: TrainConfig, found: Plan, gpus: int | None, done: int, utilisation: float) -> dict[str, str]:
    data = config.data
    units = {MODALITIES[name].unit or name: flops for name, flops in found.cost.unit_flops.items()}
    flops = {"token": found.cost.token_flops, **units, "step": found.flops_per_step}
    peak, whose = _peak(gpus)
    micro_batches = counted(found.micro_batches, "micro-batch")
    seconds, left = found.flops_per_step / ((gpus or 1) * peak * utilisation), max(0, config.steps - done)
    return {
        **({"may run on": f"{describe_worlds(config, gpus)} GPUs"} if gpus and gpus > 1 else {}),
        "a step": f"{data.rows_per_step} rows of {data.row_tokens} = {found.tokens_per_step:,.0f} tokens, "
        f"{found.images_per_step:,.0f} images; {micro_batches} of {data.rows_per_micro_batch} rows",
        **_workers(config, gpus or 1),
        **({"assumed": found.assumed} if found.assumed else {"packing": _packing(data, found)}),
        "FLOPs": ", ".join(f"{count:.3g} {_a(unit)}" for unit, count in flops.items()),
        "the run": f"{config.steps:,} steps, {_count(config.steps * found.tokens_per_step)} tokens",
        **(
            {"passes": ", ".join(f"{name} {count:.3g}" for name, count in found.passes.items())} if found.passes else {}
        ),
        "to go": f"{left:,} steps, {_count(left * found.tokens_per_step)} tokens, {_duration(seconds * left)}",
        "at": f"{_duration(seconds)} a step, {100 * utilisation:.0f} % of {whose} {_rate(peak)}",
    }


def _peak(gpus: int | None) -> tuple[float, str]:
    """FLOP/s, and whose: of this machine where it is meant, of an H100 where GPUs are planned for."""
    if gpus is None:
        one, product = torch.rand(1024, 1024), 2 * 1024**3
        (one @ one).sum()  # the first product starts the threads
        began = time.perf_counter()
        (one @ one).sum()
        return product / (time.perf_counter() - began), "what this CPU multiplies now,"
    own_peak = device_peak()
    return (PEAKS["H100"], "an H100's") if own_peak is None else (own_peak, "this GPU's")


def _packing(data: DataConfig, found: Plan) -> str:
    """How full the rows are, and what keeps them from being fuller."""
    text = f"{100 * found.packed:.1f} % of the positions are tokens"
    if found.packed < 0.9 and found.crowded > 0.5:
        text += f"; data.max_images_per_row={data.max_images_per_row} is reached in {100 * found.crowded:.0f} % of the "
        text += "rows: raise it, or lower data.row_tokens"
    return text


def _a(unit: str) -> str:
    return f"{'an' if unit[0] in 'aeiou' else 'a'} {unit}"


def _size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.3g} MiB"


def _count(number: float) -> str:
    return f"{number / 1e9:.3g} B" if number >= 1e9 else f"{number / 1e6:.3g} M" if number >= 1e6 else f"{number:,.0f}"


def _rate(flops: float) -> str:
    return f"{flops / 1e12:.0f} TFLOP/s" if flops >= 1e13 else f"{flops / 1e9:.3g} GFLOP/s"


def _duration(seconds: float) -> str:
    units = {"days": 86400, "hours": 3600, "minutes": 60, "s": 1, "ms": 1e-3}
    name = next((name for name, length in units.items() if seconds >= (2 if length > 1 else 1) * length), "ms")
    return f"{seconds / units[name]:.3g} {name}"


def _workers(config: TrainConfig, gpus: int) -> dict[str, str]:
    """What to say of loader workers that have unequal shares: the one with most rows sets the pace."""
    shares = rows_by_worker(config.data, gpus)
    if not shares or min(shares) == max(shares):
        return {}
    even = max(count for count in range(1, len(shares) + 1) if sum(shares) % count == 0)
    shown = ", ".join(map(str, shares))
    return {"loader": f"rows of a step by worker of a rank: {shown}; data.workers={even} would share evenly"}
