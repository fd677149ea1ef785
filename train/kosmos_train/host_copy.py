"""Copies of tensors in the CPU's memory, which a thread may write to disk while training goes on.

From a GPU they go into pinned memory, all of them on their way at once and nothing staged: a copy into ordinary memory
goes through a small buffer of the driver, one tensor at a time. torch keeps pinned memory that is given back, so the
next checkpoint finds what the last one has left.
"""

from __future__ import annotations

import torch
from torch import Tensor


def host_copy(tensor: Tensor) -> Tensor:
    """Return a copy on the CPU; of one on a GPU it is whole only after :func:`wait_for_copies`."""
    if not tensor.is_cuda:
        return tensor.detach().to("cpu", copy=True)
    kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return kept.copy_(tensor.detach(), non_blocking=True)


def wait_for_copies(device: torch.device) -> None:
    """Wait until everything that was copied from ``device`` has arrived."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
