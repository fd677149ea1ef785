"""Whether a run fits into the memory of its GPU, and if not, which change of its settings would make it fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from kosmos.cost import encoded_bytes

from .simulate import IMAGES, memory_of

SURE = 0.85  # of what is an estimate: fake tensors hold at most 15 % less


def check_free_memory(config: Any, model: Any, cost: Any, world: Any) -> None:
    """Ask the GPU of each rank what is free, and refuse a run that is too large; all ranks hear of it.

    Raises:
        ValueError: see :func:`check_memory`.
    """
    if world.device.type == "cuda":
        free = float(torch.cuda.mem_get_info(world.device)[0])
        world.attempt("looking at its memory", lambda: check_memory(config, model, cost, world.size, free))


def check_memory(config: Any, model: Any, cost: Any, gpus: int, free: float) -> None:
    """Refuse a run that needs more than ``free`` bytes on each of ``gpus`` GPUs, estimates counted at their least.

    Args:
        config: a ``TrainConfig``.
        model: on any device; its shapes matter.
        cost: its ``kosmos.cost.Cost``.

    Raises:
        ValueError: it does not fit; says what would.
    """
    image = encoded_bytes(model.model, {"image": 1.0})

    def needed(settings: Any) -> float:
        sizes = memory_of(settings, model, cost, gpus, image * IMAGES * settings.data.rows_per_micro_batch)
        return sum(size * (SURE if name.endswith("about") else 1.0) for name, size in sizes.items())

    if needed(config) <= free:
        return
    fitting = next((words for words, other in _smaller(config, gpus) if needed(other) <= free), None)
    hint = f"{fitting} would fit" if fitting else "no setting would: take more GPUs, larger ones or a smaller model"
    raise ValueError(
        f"the run needs {needed(config) / 2**30:.1f} GiB or more on each GPU, but {free / 2**30:.1f} are free; {hint}"
    )


def _smaller(config: Any, gpus: int) -> Iterator[tuple[str, Any]]:
    """Yield settings that take less memory, what costs the least time first: as they are written, and all of them."""
    data, model, engine = config.data, config.model, config.engine
    own = data.rows_per_step // gpus
    sizes = [size for size in range(data.rows_per_micro_batch, 0, -1) if own % size == 0]
    stages = [stage for stage in range(4) if stage == engine.zero_stage or (stage > 1 and stage > engine.zero_stage)]
    for stage in stages:
        for recomputed in (True,) if model.activation_checkpointing else (False, True):
            for size in sizes:
                other = replace(
                    config,
                    data=replace(data, rows_per_micro_batch=size),
                    model=replace(model, activation_checkpointing=recomputed),
                    engine=replace(engine, zero_stage=stage),
                )
                changed = {
                    f"data.rows_per_micro_batch={size}": size != data.rows_per_micro_batch,
                    "model.activation_checkpointing=true": recomputed != model.activation_checkpointing,
                    f"engine.zero_stage={stage}": stage != engine.zero_stage,
                }
                with suppress(ValueError):  # Muon knows no stage 3
                    other.check(gpus)
                    yield " ".join(words for words, is_so in changed.items() if is_so), other
