"""What 64 ranks send each other in a step under each ZeRO stage: every byte of DeepSpeed's collectives, and no network.

torch's fake process group answers for the other 63 ranks, so that a world of 64 is one process. The roofline counts
communication by what is found here (roofline.py).
"""

from __future__ import annotations

import copy
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

import jobs
import tiny

from kosmos import settings
from kosmos_train.config import TrainConfig

RANKS, MICRO = 64, 3


class Sent(TorchDispatchMode):
    """Counts what collectives are given in bf16, by kind, the larger side of each; norms have other types."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        space, name = func._schema.name.split("::")
        if space == "c10d":
            side = args[1] if "reduce_scatter" in name else args[0]
            kind = "gathered" if "gather" in name else "reduced" if "reduce" in name else name
            tensors = [one for one in tree_flatten(side)[0] if torch.is_tensor(one) and one.dtype == torch.bfloat16]
            self.bytes[kind] += 2 * sum(one.numel() for one in tensors)
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def world() -> Iterator[Any]:
    """A process group of which this process is rank 0."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from kosmos_train.distributed import World, quiet

    os.environ.update(RANK="0", WORLD_SIZE=str(RANKS), LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="29777")
    os.environ["LOCAL_WORLD_SIZE"] = "8"
    quiet()
    import deepspeed

    deepspeed.ops.__compatible_ops__ = {}
    dist.init_process_group("fake", rank=0, world_size=RANKS, store=FakeStore())
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    yield World(0, RANKS, 0, torch.device("cpu"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny.make_world(tmp_path_factory.mktemp("world"))


def engine_of(values: dict[str, Any], world: Any, stage: int) -> tuple[Any, Any]:
    from kosmos_train.build import build_model, build_processor
    from kosmos_train.engine import Engine

    values = copy.deepcopy(values)
    values["engine"] = {"zero_stage": stage, "precision": "bf16"}
    values["optim"]["name"] = "adamw"
    rows = RANKS * MICRO * 2
    values["data"] |= {"rows_per_step": rows, "lanes": rows, "rows_per_micro_batch": 2}
    config = settings.from_dict(TrainConfig, values)
    processor = build_processor(config)
    return Engine(build_model(config, processor), processor, config, world, ["text", "pairs"]), processor


@pytest.mark.simulated
@pytest.mark.parametrize(("stage", "reduced"), [(1, 1), (2, MICRO), (3, MICRO)])
def test_bytes_of_a_step(stage: int, reduced: int, values: dict[str, Any], world: Any) -> None:
    """Gradients travel once a step at stage 1, once a micro-batch above; weights once, at stage 3 for every pass."""
    engine, processor = engine_of(values, world, stage)
    weights = list(engine.model.parameters())
    held, learns = (
        2 * sum(getattr(value, "ds_numel", value.numel()) for value in weights if value.requires_grad or frozen)
        for frozen in (True, False)
    )
    batch = SimpleNamespace(micro_batches=[jobs.micro_batch(seed, processor, image=True) for seed in range(MICRO)])
    engine.step(batch, 1, 1e-3, {})
    with Sent() as sent:
        engine.step(batch, 2, 1e-3, {})
    engine.close()
    print(f"stage {stage}: {dict(sent.bytes)}; weights that learn {learns} bytes, all {held}")
    assert sent.bytes["reduced"] == pytest.approx(reduced * learns, rel=0.05)
    if stage < 3:
        assert sent.bytes["gathered"] == pytest.approx(learns, rel=0.05)
    else:  # forward and backward; small weights are kept whole on every rank
        assert sent.bytes["gathered"] <= 2 * MICRO * held * 1.05
