"""The likeliest token without the whole product in fp32: screened in bf16, decided in fp32.

At the sizes that run on a CPU the output matrix is most of what a decoded token reads (33 of 52 MB at d=256, 6 layers,
V=32,000). A bf16 copy is half of that, and AMX and AVX-512 multiply it several times faster. It cannot decide, but it
can exclude: with u = 2⁻⁸, the unit roundoff of bf16, E a row of the matrix, x the hidden state and fp32 sums,

    |E·x - bf16(bf16(E)·bf16(x))| ≤ (3u + 3u² + u³ + d·2⁻²⁴) ‖E‖‖x‖ < 3.25u ‖E‖‖x‖   up to d = 10,000

(a rounding of each factor, and one of the result), so that no row whose rough logit is more than twice this bound (with
the largest ‖E‖) below the best can win. What is left, a token or a few, is multiplied in fp32. Where two tokens are
equal up to the rounding of an fp32 sum, either may be chosen, as with any other order of summation.

Differs from the papers: not in them. Costs one bf16 copy of the output matrix while ``generate()`` runs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .decode import watched

BOUND = 3.25 * 2.0**-8
WIDEST = 10_000  # up to which the bound holds
SMALLEST_MATRIX = 2**22  # elements; below, the product is not what a token costs
MOST_CANDIDATES = 1024  # a row; beyond, the plain product is as fast


class Screen:
    """Chooses the argmax of ``weight_VD @ hidden``; holds the weights of the moment: one for each ``generate()``."""

    def __init__(self, weight_VD: Tensor) -> None:
        self.weight, self.rough = weight_VD, weight_VD.bfloat16()
        self.bound = BOUND * float(torch.linalg.vector_norm(weight_VD, dim=1).max())

    def choose(self, hidden_BD: Tensor) -> Tensor | None:
        """Return the likeliest token of each row, (B,); None where too many are left, or a logit is not finite."""
        rough_BV = self._rough_logits(hidden_BD.bfloat16())
        best_B = rough_BV.amax(-1).tolist()
        norm_B = torch.linalg.vector_norm(hidden_BD, dim=1).tolist()
        chosen = []
        for row, (best, norm) in enumerate(zip(best_B, norm_B, strict=True)):
            threshold = best - 2 * self.bound * norm
            threshold -= abs(threshold) * 2.0**-7  # so that bf16 rounds it down
            if not math.isfinite(threshold):
                return None
            token_N = (rough_BV[row] >= threshold).nonzero()[:, 0]
            if len(token_N) > MOST_CANDIDATES:
                return None
            if len(token_N) > 1:
                token_N = token_N[torch.mv(self.weight[token_N], hidden_BD[row]).argmax(0, keepdim=True)]
            chosen.append(token_N)
        return torch.cat(chosen)

    def _rough_logits(self, hidden_BD: Tensor) -> Tensor:
        """Return bf16 logits (B, V); the large factor stands first because oneDNN would reorder it as the second."""
        if len(hidden_BD) == 1:
            return torch.mv(self.rough, hidden_BD[0])[None]
        return torch.mm(self.rough, hidden_BD.t()).t().contiguous()


def can_screen(head: nn.Module) -> bool:
    """Whether a screen of this output matrix is right and pays: plain, fp32, large, on a CPU that multiplies bf16."""
    if type(head) is not nn.Linear or head.bias is not None or watched(head):
        return False
    weight = head.weight
    if type(weight) is not nn.Parameter or weight.dtype != torch.float32 or weight.device.type != "cpu":
        return False
    return weight.numel() >= SMALLEST_MATRIX and weight.shape[1] <= WIDEST and torch.cpu._is_avx512_bf16_supported()
