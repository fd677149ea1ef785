"""Muon for the decoder's matrices: momentum whose singular values are all made alike, beside AdamW for the rest.

    momentum   m ← μ m + (1 − μ) g             g: the gradient after clipping
    update     u = Newton–Schulz((1 − μ) g + μ m)      ≈ U Vᵀ of the singular value decomposition
    weight     w ← w (1 − lr · decay) − lr · √max(1, rows / columns) · u

Source: K. Jordan and others, "Muon: an optimizer for hidden layers in neural networks" (2024), whose scale of the
learning rate this is. The update needs a whole matrix, which ZeRO-1 and -2 cut: a rank holds a slice of all matrices
laid end to end. It gets the rest of the one or two matrices that begin or end elsewhere from its neighbours, so a step
sends no more than those, and every rank works on its own matrices only.

Differs from DeepSpeed's own Muon (0.19.8), which works on the gradient before clipping, so that the norm of the
gradient and the limit on it lose their meaning, and which has moved its momentum before a bad step can be vetoed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from .fragments import Fragment

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5


class Muon(torch.optim.Optimizer):
    """Muon for matrices on one process.

    torch.optim.Muon makes the same steps, but in bf16, which a CPU without instructions for it multiplies about ten
    times slower than fp32.
    """

    def __init__(self, matrices: list[torch.nn.Parameter], lr: float, weight_decay: float, momentum: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                momentum = self.state[weight].setdefault("exp_avg", torch.zeros_like(weight))
                made = step_of(_blend(weight.grad, momentum, self.momentum))
                weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(made, alpha=group["lr"])


def _blend(gradient: torch.Tensor, momentum: torch.Tensor, decay: float) -> torch.Tensor:
    """Move the momentum, and return gradient and momentum blended (Nesterov)."""
    momentum.lerp_(gradient, 1 - decay)
    return gradient.lerp(momentum, decay)


@dataclass(frozen=True)
class Matrix:
    """A matrix as a rank sees it: what it holds of it, and where the other elements are.

    Args:
        shape: rows and columns.
        fragment: what this rank holds.
        holders: ranks that hold a piece, with the first and last element of it; empty where nothing is cut.
    """

    shape: tuple[int, int]
    fragment: Fragment
    holders: tuple[tuple[int, int, int], ...] = ()


def matrices(found: Iterable[Fragment], shapes: Mapping[str, torch.Size], stage: int) -> list[Matrix]:
    """Return what this rank holds of the matrices whose ``shapes`` are given, under ZeRO stage 0, 1 or 2.

    Args:
        found: this rank's fragments of all parameters.
        shapes: of the matrices, by name.
        stage: of ZeRO; from 1 on each flat tensor is one of ``world size`` equal slices.
    """
    rank = dist.get_rank()
    made = []
    for fragment in found:
        if fragment.name not in shapes or not fragment.numel:
            continue
        rows, columns = shapes[fragment.name]
        size, holders = fragment.flat.numel(), []
        if stage:
            # element 0 of the matrix is so far from the beginning of the first rank's slice
            origin = rank * size + fragment.offset - fragment.start
            for holder in range(origin // size, (origin + rows * columns - 1) // size + 1):
                start = max(0, holder * size - origin)
                holders.append((holder, start, min(rows * columns, (holder + 1) * size - origin)))
        made.append(Matrix((rows, columns), fragment, tuple(holders) if len(holders) > 1 else ()))
    return made


@torch.no_grad()
def update(
    group: Mapping[str, Any], decay: float, own: Iterable[Matrix], state: Mapping[torch.Tensor, dict[str, Any]]
) -> None:
    """Move the weights of one group of parameters, whose tensors hold this step's gradient; all ranks take part.

    Args:
        group: of the optimiser, with ``lr`` and ``weight_decay``.
        decay: of the momentum, μ.
        own: this rank's matrices; those of other groups are passed over.
        state: of the optimiser; ``exp_avg`` of each tensor is the momentum.
    """
    blends = {}
    for flat in group["params"]:
        if flat.grad is None:
            continue
        blends[flat] = _blend(flat.grad, state[flat]["exp_avg"], decay).view(-1)
        state[flat]["step"] += 1
    own = [matrix for matrix in own if matrix.fragment.flat in blends]
    for matrix, whole in zip(own, _whole(own, blends), strict=True):
        fragment = matrix.fragment
        made = step_of(whole.view(matrix.shape)).view(-1).narrow(0, fragment.start, fragment.numel)
        weight = fragment.flat.view(-1).narrow(0, fragment.offset, fragment.numel)
        weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(made, alpha=group["lr"])


def _whole(own: list[Matrix], blends: Mapping[torch.Tensor, torch.Tensor]) -> list[torch.Tensor]:
    """Whole matrices, flat: pieces of those that are cut are exchanged by the ranks that hold them, all at once."""
    wholes, requests = [], []
    for matrix in own:
        fragment = matrix.fragment
        piece = blends[fragment.flat].narrow(0, fragment.offset, fragment.numel)
        if not matrix.holders:
            wholes.append(piece)
            continue
        whole = piece.new_empty(math.prod(matrix.shape))
        whole.narrow(0, fragment.start, fragment.numel).copy_(piece)
        for holder, start, stop in matrix.holders:
            if holder != dist.get_rank():  # both sides list their matrices in the same order, so each finds its own
                requests.append(dist.P2POp(dist.isend, piece, holder))
                requests.append(dist.P2POp(dist.irecv, whole[start:stop], holder))
        wholes.append(whole)
    for request in dist.batch_isend_irecv(requests) if requests else ():
        request.wait()
    return wholes


def step_of(blend: torch.Tensor) -> torch.Tensor:
    """Return the step (R, C) of a weight, without the learning rate, of gradient and momentum blended."""
    rows, columns = blend.shape
    return orthogonalize(blend) * math.sqrt(max(1.0, rows / columns))


def orthogonalize(matrix: torch.Tensor) -> torch.Tensor:
    """Return the matrix (R, C) with all its singular values moved near to 1 (0.7 to 1.2).

    Five steps of the quintic Newton–Schulz iteration, in bf16 on a GPU, whose tensor cores make it cheap, and in fp32
    on a CPU.
    """
    a, b, c = _COEFFICIENTS
    x = matrix.bfloat16() if matrix.is_cuda else matrix.float()
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if is_tall else x).to(matrix.dtype).contiguous()
