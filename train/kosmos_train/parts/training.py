"""What the programs that make a part of a model (vision.py, encoder.py, tokenizer.py) share: settings and the loop.

They run on one process, on corpora of the same format as the training's, and leave out what cannot be read.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from ..muon import Muon


@dataclass
class PartConfig:
    """Training of one encoder on one process; the encoder decides on the defaults."""

    model: dict[str, Any] = field(default_factory=dict)
    """The encoder's own config, as its library names the fields."""
    processor: str = ""
    """Folder of the Kosmos processor, whose tokenizer (and image processor) the encoder shares."""
    shards: list[str] = field(default_factory=list)
    """Corpora to train on."""
    steps: int = 10_000
    """Updates."""
    batch_size: int = 64
    """Examples per update."""
    lr: float = 1e-3
    """Peak learning rate of AdamW; it falls to 0."""
    muon_lr: float = 0.0
    """Peak learning rate of Muon for the matrices of the layers, e.g. 0.02; 0: AdamW for all."""
    warmup: int = 100
    """Updates of linear warm-up."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    seed: int = 0
    """Of the weights, the order and all else that is drawn."""


def warn_left_out(where: str, reasons: Mapping[str, int]) -> None:
    """Say how many documents of ``where`` were left out, by reason; nothing if there are none."""
    if reasons:
        counts = ", ".join(f"{count} × {reason}" for reason, count in sorted(reasons.items()))
        logging.getLogger(__name__).warning("%s: documents left out: %s", where, counts)


def progress() -> Progress:
    """Return the bars of such a program; a task brings a ``note``."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn()
    )


def fit(
    model: nn.Module,
    losses: Iterable[Tensor],
    config: PartConfig,
    rate: Callable[[int], float],
    task: str,
    bars: Progress,
    betas: tuple[float, float] = (0.9, 0.999),
    clip: float = math.inf,
) -> tuple[list[float], float]:
    """Update ``model`` for every loss; return the losses, and their smoothed last one, in nats.

    Args:
        losses: each is computed when it is asked for, and so after the update by the one before.
        rate: share of the peak learning rates at a step, counted from 0.
        task: what the bar calls it.
        betas: of AdamW.
        clip: largest norm of the gradient.
    """
    optimizers = _optimizers(model, config, betas)
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, rate) for optimizer in optimizers]
    bar = bars.add_task(task, total=config.steps, note="")
    seen, smoothed = [], math.nan
    for loss in losses:
        model.zero_grad()
        loss.backward()
        if math.isfinite(clip):
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        seen.append(loss.item())
        smoothed = seen[-1] if len(seen) == 1 else 0.95 * smoothed + 0.05 * seen[-1]
        bars.update(bar, advance=1, note=f"loss {smoothed:.3f}")
    return seen, smoothed


def _optimizers(model: nn.Module, config: PartConfig, betas: tuple[float, float]) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the matrices of numbered layers if the settings ask for it."""
    layers = re.compile(r"\.\d+\.")
    by_muon = {
        name: weight
        for name, weight in model.named_parameters()
        if config.muon_lr > 0 and weight.ndim == 2 and layers.search(name)
    }
    others = [weight for name, weight in model.named_parameters() if name not in by_muon]
    made: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=config.lr, betas=betas, weight_decay=config.weight_decay)
    ]
    if by_muon:
        matrices = list(by_muon.values())
        made.append(Muon(matrices, config.muon_lr, config.weight_decay, momentum=0.95))
    return made
