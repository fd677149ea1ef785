"""The ranks of one run: start-up with or without a launcher, and the few collectives that the loop needs.

Works under torchrun, ``deepspeed``, ``srun torchrun`` and with no launcher at all (one process). On a machine without
a GPU the backend is gloo. DeepSpeed would compile a shared-memory op the first time it starts on a CPU; that op serves
inference only, so on CPUs compiled ops are declared absent and no C compiler is called.
"""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from kosmos.gpu import lacking, versions

T = TypeVar("T")
Name = TypeVar("Name")


@dataclass(frozen=True)
class World:
    """Who this process is: rank of size, local rank on its host, and its device."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes logs and metadata."""
        return self.rank == 0

    def sum(self, counts: Mapping[Name, float]) -> dict[Name, float]:
        """Sum numbers by name over all ranks, in float64 and one reduction; every rank gets the same result.

        Args:
            counts: names that are the same, in the same order, on all ranks.
        """
        if self.size == 1:
            return {name: float(count) for name, count in counts.items()}
        tensor = torch.tensor(list(counts.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return dict(zip(counts, tensor.tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """True on every rank when it is true on one."""
        return self.sum({"flag": float(flag)})["flag"] > 0

    def gather(self, value: Any) -> list[Any]:
        """Every rank's picklable ``value``, on every rank (only among the processes of one run: never from a file)."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def attempt(self, doing: str, action: Callable[[], T]) -> T:
        """Call ``action`` and return its result; if it fails on one rank for a reason of the user's, all ranks raise.

        Raises:
            OSError, ValueError: see :meth:`agree`.
        """
        error: Exception | None = None
        result: Any = None
        try:
            result = action()
        except (OSError, ValueError) as caught:
            error = caught
        self.agree(error, doing)
        return result

    def agree(self, error: Exception | None, doing: str) -> None:
        """Raise on every rank when ``error`` is set on one, so that no rank waits for one that has given up.

        Raises:
            OSError, ValueError: the failing rank's own error, and on the others one of this family that names it.
            RuntimeError: for anything else.
        """
        kind = next((kind for kind in (ValueError, OSError) if isinstance(error, kind)), RuntimeError)
        report = None if error is None else (kind, str(error))
        failures = [(rank, *found) for rank, found in enumerate(self.gather(report)) if found is not None]
        if error is not None:
            raise error
        if failures:
            rank, kind, message = failures[0]
            raise kind(f"rank {rank} failed {doing}: {message}")


def start(timeout_minutes: float = 30.0) -> World:
    """Join (or, without a launcher, form) the process group and say who we are.

    ``timeout_minutes`` bounds every collective: a dead or cut-off peer ends the run after at most this long.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1")
        os.environ["MASTER_PORT"] = "0"  # whichever is free then; one that was tried before might be taken meanwhile
    quiet()
    import deepspeed

    if os.environ["DS_ACCELERATOR"] == "cpu":
        # Otherwise found out on first use by running the compiler for each op.
        deepspeed.ops.__compatible_ops__ = {}
        # Ranges for NVIDIA's profiler around each hook of ZeRO-3: a twentieth of a small step, and nobody reads them.
        deepspeed.utils.nvtx.enable_nvtx = False
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    deepspeed.init_distributed(
        "nccl" if device.type == "cuda" else "gloo",
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timedelta(minutes=timeout_minutes),
    )
    return World(dist.get_rank(), dist.get_world_size(), local_rank, device)


def check_machines(world: World, precision: str) -> None:
    """Refuse machines that would end the run later, in its first kernel or collective; all ranks hear of each.

    Raises:
        ValueError: what a GPU lacks, or ranks with different versions of torch or NCCL.
    """

    def look() -> None:
        if found := lacking(world.device, precision):
            raise ValueError(f"{socket.gethostname()}: {'; '.join(found)}")

    world.attempt("looking at its GPU", look)
    ranks = world.gather((socket.gethostname(), versions(world.device)))
    for rank, (host, found) in enumerate(ranks):
        if found != ranks[0][1]:
            differ = ", ".join(
                f"{name} {found.get(name, 'none')} instead of {version}"
                for name, version in ranks[0][1].items()
                if found.get(name, "none") != version
            )
            raise ValueError(f"rank {rank} on {host} has {differ}, which rank 0 has: install the same everywhere")


def allow_tf32(device: torch.device, precision: str) -> str | None:
    """Let a GPU multiply fp32 matrices in TF32, six times as fast, and return what the log is to say of it.

    TF32 rounds the factors to 10 bits of mantissa and sums in fp32. Elsewhere nothing changes: None.
    """
    if device.type != "cuda" or precision != "fp32":
        return None
    torch.set_float32_matmul_precision("high")
    return "fp32 on a GPU: matrix products round their factors to TF32 (10 bits); engine.precision=bf16 is faster still"


def quiet() -> None:
    """Keep the start-up chatter and progress bars of DeepSpeed, torch and transformers out of the log."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    # The new name, activation_checkpointing_enable, is younger than the oldest transformers we allow.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing_enable. is deprecated.*")
    warnings.filterwarnings("ignore", message=".*(reduce_scatter_tensor|all_gather_into_tensor).*deprecated.*")
    import deepspeed
    import transformers

    deepspeed.utils.logger.setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
