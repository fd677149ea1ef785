"""``kosmos simulate CONFIG --gpus 64 --gpu h100``: how fast a run would be, before there is a GPU.

It needs neither corpora nor weights nor a processor: the rows are taken to be full, with so many pictures each. The
assumptions of the roofline (roofline.py) are arguments, and stand in the output.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from kosmos import settings

from .arguments import add_run_arguments, parse_run_arguments

PER_NODE = 8


@dataclass(frozen=True)
class Simulation:
    """What a run would be like."""

    parts: dict[str, float]
    """ms of a step by part."""
    mfu: float
    """Share of the peak that is useful, the output matrix counted for tokens with a label, as the log counts."""
    mfu_all: float
    """The same with the output matrix counted for every token, as most published figures are."""
    tokens_per_second: float
    """Of all GPUs."""
    memory: dict[str, float]
    """Bytes on a GPU by what they hold."""

    @property
    def milliseconds(self) -> float:
        """Length of a step."""
        return sum(self.parts.values())


def simulate(config: Any, gpus: int, rates: Any, images_per_row: float) -> Simulation:
    """Work out a step of ``config`` (a ``TrainConfig``) on ``gpus`` GPUs with these ``Assumptions``.

    Raises:
        ValueError: settings that cannot work on so many GPUs.
    """
    import torch

    from kosmos import KosmosConfig, KosmosForConditionalGeneration
    from kosmos.cost import encoded_bytes, model_cost

    from .build import _described
    from .engine import dtype_of
    from .optim import freeze
    from .roofline import Share, step_parts

    config.check(gpus)
    described = KosmosConfig.from_dict(_described(config.model))
    with torch.device("meta"):
        model = KosmosForConditionalGeneration(described).to(dtype_of(config.engine))
    freeze(model, config.model.freeze)
    cost = model_cost(model, config.data.row_tokens)
    rows = config.data.rows_per_step / gpus
    images = images_per_row if "image" in cost.unit_flops else 0.0
    tokens = rows * config.data.row_tokens
    slots = rows * images * described.num_image_tokens
    units = {name: rows * images if name == "image" else 0.0 for name in cost.unit_flops}
    share = Share(tokens, tokens - slots, units)
    parts = step_parts(config, cost, described.text_config, share, gpus, rates)
    seconds = sum(parts.values()) / 1e3
    useful = seconds * rates.peak * 1e12
    micro = {name: count / config.micro_batches(gpus) for name, count in units.items()}
    return Simulation(
        parts=parts,
        mfu=cost.flops(tokens, units, share.supervised) / useful,
        mfu_all=cost.flops(tokens, units) / useful,
        tokens_per_second=gpus * tokens / seconds,
        memory=memory_of(config, model, cost, gpus, encoded_bytes(model.model, micro)),
    )


def memory_of(config: Any, model: Any, cost: Any, gpus: int, encoded: float) -> dict[str, float]:
    """Return the bytes that a GPU holds in the run, by what they hold (kosmos/cost.py)."""
    from kosmos.cost import memory

    from .optim import is_for_muon

    learn = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    return memory(
        cost,
        model.config,
        config.data.rows_per_micro_batch,
        config.data.row_tokens,
        checkpointing=config.model.activation_checkpointing,
        zero_stage=config.engine.zero_stage,
        gpus=gpus,
        precision=config.engine.precision,
        offload=config.engine.offload_optimizer,
        one_moment=sum(value.numel() for name, value in learn if is_for_muon(name, value.shape, config.optim)),
        encoded=encoded,
    )


def world_sizes(config: Any, most: int, step: int = PER_NODE) -> dict[int, int]:
    """Return the numbers of GPUs, multiples of ``step``, that the run may have, each with its rows a micro-batch.

    That is the largest number up to ``data.rows_per_micro_batch`` which divides the rows of a GPU.
    """
    data = config.data
    shared = min(data.rows_per_step, data.lane_count)
    found = {}
    for gpus in range(step, most + 1, step):
        if shared % gpus == 0:
            rows = data.rows_per_step // gpus
            found[gpus] = max(size for size in range(1, data.rows_per_micro_batch + 1) if rows % size == 0)
    return found


def describe_worlds(config: Any, gpus: int) -> str:
    """Say on how many GPUs the run may go on, as after the loss of a node, and what must change then."""
    found = world_sizes(config, max(2 * gpus, PER_NODE))
    return ", ".join(
        f"{size}" if rows == config.data.rows_per_micro_batch else f"{size} (data.rows_per_micro_batch={rows})"
        for size, rows in found.items()
    )


def main(argv: Sequence[str]) -> int:
    """The command ``kosmos simulate``."""
    from .config import TrainConfig
    from .roofline import GPUS, Assumptions, with_rates

    parser = argparse.ArgumentParser(
        prog="kosmos simulate",
        description="Step time by part, MFU and memory of a run on GPUs, by a roofline whose rates are assumptions.",
        epilog="example: kosmos simulate train/configs/kosmos1.yaml --gpus 64 --gpu h100",
    )
    add_run_arguments(parser)
    parser.add_argument("--gpus", type=int, default=PER_NODE, help=f"how many ({PER_NODE})")
    parser.add_argument("--gpu", default="h100", help=f"which: {', '.join(sorted(GPUS))} (h100)")
    parser.add_argument("--images-per-row", type=float, default=12.0, help="pictures in a row on average (12)")
    units = {"bus": "GB/s", "memory": "TB/s", "bubble": "ms", "loader": "ms", "rest": "ms"}
    for field in fields(Assumptions):
        parser.add_argument(f"--{field.name}", type=float, help=f"{units.get(field.name, 'TFLOP/s')}, see roofline.py")
    arguments, _ = parse_run_arguments(parser, argv)
    config = settings.load(TrainConfig, arguments.config, arguments.overrides)
    rates = with_rates(arguments.gpu, **{field.name: getattr(arguments, field.name) for field in fields(Assumptions)})
    found = simulate(config, arguments.gpus, rates, arguments.images_per_row)
    _show(config, arguments, rates, found)
    return 0


def _show(config: Any, arguments: argparse.Namespace, rates: Any, found: Simulation) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{arguments.gpus} × {arguments.gpu}, simulated: no GPU has run this"
    table = Table("", "", show_header=False, title=title)
    for name, value in found.parts.items():
        table.add_row(name, f"{value:.1f} ms")
    table.add_row("a step", f"{found.milliseconds:.0f} ms, {found.tokens_per_second:,.0f} tokens/s")
    table.add_row(
        "MFU", f"{100 * found.mfu:.1f} %; with the output matrix counted for every token {100 * found.mfu_all:.1f} %"
    )
    table.add_section()
    for name, size in found.memory.items():
        table.add_row(name, f"{size / 2**30:.2f} GiB")
    table.add_row("memory", f"{sum(found.memory.values()) / 2**30:.2f} GiB a GPU")
    table.add_section()
    table.add_row("may run on", f"{describe_worlds(config, arguments.gpus)} GPUs")
    assumed = ", ".join(f"{name} {value:g}" for name, value in asdict(rates).items())
    table.add_row("assumed", f"{assumed}, images-per-row {arguments.images_per_row:g}; rows without padding")
    Console().print(table)
