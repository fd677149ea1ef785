"""The memory that --dry-run tells, against what fake tensors hold through a step of kosmos-1."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from fake_cuda import Memory, build, fake_cuda, on_cuda, rows

from kosmos import KosmosConfig, KosmosForConditionalGeneration
from kosmos.cost import encoded_bytes, memory, model_cost

LENGTH, IMAGES = 2048, 12


@cache
def counted() -> tuple[Any, Any, float]:
    """Config, cost and the bytes of an image of kosmos-1."""
    config = KosmosConfig.preset("kosmos-1")
    with torch.device("meta"):
        model = KosmosForConditionalGeneration(config).bfloat16()
    return config, model_cost(model, LENGTH), encoded_bytes(model.model, {"image": 1.0})


def followed(count: int, checkpointing: bool) -> int:
    """Peak bytes of a micro-batch of ``count`` rows, weights and bf16 gradients included."""
    config = KosmosConfig.preset("kosmos-1")
    batch = rows(config, count, LENGTH, IMAGES)
    with fake_cuda() as mode:
        with mode:
            model = build(config)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        layout = model.model.describe_rows(**batch)
        with mode:
            moved = {name: on_cuda(value) for name, value in {**batch, "layout": layout}.items()}
            moved["pixel_values"] = moved["pixel_values"].bfloat16()
            with Memory(*model.parameters(), *model.buffers()) as held:
                model(**moved, num_items_in_batch=1.0, dummy_image=True).loss.backward()
    return held.peak


@pytest.mark.simulated
@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("count", [3, 9])
def test_told_memory_is_within_15_percent(count: int, checkpointing: bool) -> None:
    """Without DeepSpeed, whose state is exact and whose buckets no tensor here follows."""
    found = followed(count, checkpointing)  # before another backward pass counts the devices of this process
    config, cost, image = counted()
    sizes = memory(
        cost,
        config,
        count,
        LENGTH,
        checkpointing=checkpointing,
        zero_stage=0,
        gpus=1,
        encoded=count * IMAGES * image,
    )
    told = sum(size for name, size in sizes.items() if name.startswith("weights") or name.endswith("about"))
    print(f"{count} rows, checkpointing {checkpointing}: told {told / 2**30:.2f} GiB, followed {found / 2**30:.2f}")
    assert told == pytest.approx(found, rel=0.15)
