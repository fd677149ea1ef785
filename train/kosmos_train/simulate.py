"""``kosmos simulate CONFIG --gpus 64 --gpu h100``: how fast a run would be, before there is a GPU.

It needs neither corpora nor weights nor a processor: the rows are taken to be full, with so many pictures each. The
assumptions of the roofline (roofline.py) are arguments, and stand in the output.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from kosmos import settings

from .arguments import add_run_arguments, parse_run_arguments

PER_NODE = 8
IMAGES = 12
"""Pictures in a row where there are no corpora to count them in."""


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


@dataclass(frozen=True)
class Outline:
    """A run's model without weights, and what of it no number of GPUs changes."""

    model: Any
    cost: Any
    """A ``kosmos.cost.Cost``."""
    image_bytes: float
    """What the vision tower and its connector keep of one picture for the backward pass."""


def outline(config: Any) -> Outline:
    """Build the model of ``config`` (a ``TrainConfig``) on the meta device and count it.

    Raises:
        ValueError: the settings describe no model.
    """
    import torch

    from kosmos import KosmosConfig, KosmosForConditionalGeneration
    from kosmos.cost import encoded_bytes, model_cost

    from .build import described_by
    from .engine import dtype_of
    from .optim import freeze

    with torch.device("meta"):
        model: Any = KosmosForConditionalGeneration(KosmosConfig.from_dict(described_by(config.model)))
    freeze(model.to(dtype_of(config.engine)), config.model.freeze)
    return Outline(model, model_cost(model, config.data.row_tokens), encoded_bytes(model.model, {"image": 1.0}))


def simulate(config: Any, run: Outline, gpus: int, rates: Any, images_per_row: float) -> Simulation:
    """Work out a step of ``config`` (a ``TrainConfig``), whose outline is ``run``, with these ``Assumptions``.

    Raises:
        ValueError: settings that cannot work on so many GPUs, or more pictures than a row has places for.
    """
    from kosmos.modeling_kosmos import image_tokens

    from .roofline import Share, step_parts

    config.check(gpus)
    cost, rows = run.cost, config.data.rows_per_step / gpus
    images = images_per_row if "image" in cost.unit_flops else 0.0
    slots = images * image_tokens(run.model.config) if images else 0.0
    if not 0 <= slots <= config.data.row_tokens:
        raise ValueError(f"{images:g} pictures take {slots:g} places, but a row has {config.data.row_tokens}")
    tokens = rows * config.data.row_tokens
    units = dict.fromkeys(cost.unit_flops, 0.0) | ({"image": rows * images} if images else {})
    share = Share(tokens, tokens - rows * slots, units)
    parts = step_parts(config, cost, run.model.config.text_config, share, gpus, rates)
    seconds = sum(parts.values()) / 1e3
    useful = seconds * rates.peak * 1e12
    encoded = run.image_bytes * images * config.data.rows_per_micro_batch
    return Simulation(
        parts=parts,
        mfu=cost.flops(tokens, units, share.supervised) / useful,
        mfu_all=cost.flops(tokens, units) / useful,
        tokens_per_second=gpus * tokens / seconds,
        memory=memory_of(config, run.model, cost, gpus, encoded),
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


def world_sizes(config: Any, most: int) -> dict[int, int]:
    """Return the numbers of GPUs, multiples of a node's, that the run may have, each with its rows a micro-batch.

    That is the largest number up to ``data.rows_per_micro_batch`` which divides the rows of a GPU.
    """
    data = config.data
    shared = min(data.rows_per_step, data.lane_count)
    found = {}
    for gpus in range(PER_NODE, most + 1, PER_NODE):
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
    add_run_arguments(parser, "kosmos_train.config:TrainConfig")
    parser.add_argument("--gpus", type=int, default=PER_NODE, help=f"how many ({PER_NODE})")
    parser.add_argument("--gpu", default="h100", help=f"which: {', '.join(sorted(GPUS))} (h100)")
    parser.add_argument("--images-per-row", type=float, default=float(IMAGES), help=f"pictures in a row ({IMAGES})")
    units = {"bus": "GB/s", "memory": "TB/s", "bubble": "ms", "loader": "ms", "rest": "ms"}
    for field in fields(Assumptions):
        parser.add_argument(f"--{field.name}", type=float, help=f"{units.get(field.name, 'TFLOP/s')}, see roofline.py")
    arguments, _ = parse_run_arguments(parser, argv)
    if not 0 <= arguments.images_per_row < math.inf:
        raise ValueError(f"--images-per-row {arguments.images_per_row}: a row has 0 pictures or more")
    config = settings.load(TrainConfig, arguments.config, arguments.overrides)
    rates = with_rates(arguments.gpu, **{field.name: getattr(arguments, field.name) for field in fields(Assumptions)})
    config.check(arguments.gpus)  # before a model is built for it
    run = outline(config)
    _show(config, run, arguments, rates, simulate(config, run, arguments.gpus, rates, arguments.images_per_row))
    return 0


def _show(config: Any, run: Outline, arguments: argparse.Namespace, rates: Any, found: Simulation) -> None:
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
    if others := [name for name in run.cost.unit_flops if name != "image"]:
        table.add_row("left out", f"what the encoders of {', '.join(others)} read")
    Console(emoji=False).print(table)
