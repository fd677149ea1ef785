"""What a machine must have before it trains on a GPU, found out before the first step.

Packed rows, compiled blocks and the loss run Triton kernels. At its first kernel Triton builds a small driver in C:
without a compiler or Python's headers the run would end in its first forward pass.
"""

from __future__ import annotations

import os
import platform
import shutil
import sysconfig
from pathlib import Path

import torch


def lacking_for_triton() -> list[str]:
    """Return what Triton will miss here, each with the way to get it; empty: nothing."""
    found = []
    if not any(shutil.which(name) for name in (os.environ.get("CC"), "gcc", "clang") if name):
        found.append("no C compiler: apt install gcc libc6-dev, or set CC")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        found.append(f"no {header}: apt install python{'.'.join(platform.python_version_tuple()[:2])}-dev")
    return found


def lacking(device: torch.device, precision: str) -> list[str]:
    """Return what training in ``precision`` on ``device`` will miss; empty on a CPU."""
    if device.type != "cuda":
        return []
    found = lacking_for_triton()
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        found.append(f"{torch.cuda.get_device_name(device)} has no bf16: engine.precision=fp32, or another GPU")
    return found


def versions(device: torch.device) -> dict[str, str]:
    """Return the versions that all ranks of a run must share: torch, and NCCL where there is a GPU."""
    found = {"torch": str(torch.__version__)}
    if device.type == "cuda":
        found["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
    return found
