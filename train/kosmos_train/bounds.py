"""What the numbers of a run's settings may be at the least."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import TrainConfig

LEAST: dict[int, tuple[str, ...]] = {
    0: (
        *("optim.lr", "optim.eps", "optim.weight_decay", "optim.final_ratio", "optim.clip", "checkpoint.every"),
        *("samples.every", "eval.every", "eval.tasks_every", "guard.spike", "guard.hang_minutes"),
    ),
    1: (
        *("steps", "log.every", "checkpoint.keep", "samples.max_new_tokens", "eval.batches", "eval.batch_rows"),
        *("guard.window", "guard.max_skipped"),
    ),
}
"""The least value of numbers, by name."""


def check_bounds(config: TrainConfig) -> None:
    """Raise ValueError where a number lies outside of what it may be."""
    for least, names in LEAST.items():
        for name in names:
            value: Any = config
            for part in name.split("."):
                value = getattr(value, part)
            if not least <= value < math.inf:
                raise ValueError(f"{name}={value} must be at least {least}" + " and finite" * (value == math.inf))
    if not all(0 <= beta < 1 for beta in config.optim.betas):
        raise ValueError(f"optim.betas={list(config.optim.betas)} must lie from 0 to below 1")
    if not config.engine.timeout_minutes > 0:
        raise ValueError(f"engine.timeout_minutes={config.engine.timeout_minutes} must be above 0")
