"""The likeliest token without the whole product in fp32: screened in 8-bit integers, decided in fp32.

At the sizes that run on a CPU the output matrix is most of what a decoded token reads (33 of 52 MB at d=256, 6 layers,
V=32,000). A copy in 8-bit integers is a quarter of that, and oneDNN multiplies it faster: twice with AVX2, several
times with VNNI and AMX. It cannot decide, but it can exclude. With a row of the matrix
E = s(q + e) and the hidden state x = r(p + f), where q and p are integers up to 127 and 63 and e and f what rounding
left, the integers' product is exact and

    |E·x - s r q·p| = s r |(q + e)·f + e·p| ≤ s r (‖q + e‖‖f‖ + ‖e‖‖p‖)

so that no row can win whose rough logit plus this is below the rough logit of another minus that one's. What is left, a
token or a few, is multiplied in fp32. Where two tokens are equal up to the rounding of an fp32 sum, either may be
chosen, as with any other order of summation.

Differs from the papers: not in them. Costs one int8 copy of the output matrix as long as the model lives.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from .decode_step import watched

WIDTHS = range(2, 2**31 // 127**2)  # a sum of products fits 32 bits
LARGEST = 63  # integer of a state: 0 to 126 with as much added, so that two products fit 16 bits, where AVX2 adds them
SMALLEST_MATRIX = 2**22  # elements; below, the product is not what a token costs
CHUNK = 2**17  # elements that are made integers at a time; in a cache, four times as fast
MOST_CANDIDATES = 1024  # a row; beyond, the plain product is as fast
SLACK = 1 + 2.0**-10  # for the rounding of norms, scales and scaled values, of which each is below 2⁻¹⁸


class Screen:
    """Chooses the argmax of ``weight_VD @ hidden`` as long as the weights stay what they are; does not keep them."""

    def __init__(self, weight_VD: Tensor) -> None:
        self.fingerprint = fingerprint(weight_VD)
        size, width = weight_VD.shape
        whole, self.scale = torch.empty_like(weight_VD, dtype=torch.int8), weight_VD.new_empty(size)
        norms, rests = [], []
        rows = max(1, CHUNK // width)
        parts = (tensor.split(rows) for tensor in (weight_VD, whole, self.scale))
        for part_ND, whole_ND, scale_N in zip(*parts, strict=True):
            torch.div(part_ND.abs().amax(1), 127, out=scale_N).clamp_(min=2.0**-100)  # a row of zeros stays one
            scaled_ND = part_ND * (1 / scale_N)[:, None]
            norms.append(torch.linalg.vector_norm(scaled_ND, dim=1).max())
            rounded_ND = scaled_ND.round()
            whole_ND.copy_(rounded_ND)
            rests.append(torch.linalg.vector_norm(scaled_ND.sub_(rounded_ND), dim=1).max())
        self.norm, self.rest = (SLACK * float(torch.stack(found).max()) for found in (norms, rests))
        self.packed = torch.ops.onednn.qlinear_prepack(whole, None)
        self.one, self.zero = torch.ones(1), torch.zeros(1, dtype=torch.int)
        self.least = math.sqrt(width) / 128  # more than what scaling itself has rounded, of states and of rows

    def choose(self, weight_VD: Tensor, hidden_BD: Tensor, never_N: Tensor | None = None) -> Tensor | None:
        """Return the likeliest token of each row, (B,), but for those of ``never_N``.

        None: too many are left, or a logit is not finite.
        """
        rough_BV, errors = self.rough(hidden_BD)
        if never_N is not None:
            rough_BV.index_fill_(1, never_N, -torch.inf)
        chosen = []
        for rough_V, error, hidden_D in zip(rough_BV, errors, hidden_BD, strict=True):
            highest_V = rough_V.add_(error).mul_(self.scale)
            highest, token = highest_V.max(0)
            top = float(highest)
            lowest = top - 2 * error * float(self.scale[token])  # the logit of this token is at least that
            if not math.isfinite(lowest):
                return None
            token_N = (highest_V >= lowest - 2.0**-20 * (abs(lowest) + abs(top))).nonzero()[:, 0]  # sums round, too
            if len(token_N) > MOST_CANDIDATES:
                return None
            if len(token_N) > 1:
                token_N = token_N[torch.mv(weight_VD[token_N], hidden_D).argmax(0, keepdim=True)]
            chosen.append(token_N)
        return torch.cat(chosen)

    def rough(self, hidden_BD: Tensor) -> tuple[Tensor, list[float]]:
        """Return q·p of all tokens as fp32, (B, V), and for each row how far E·x may be from it, both by s r."""
        scaled_BD = hidden_BD * (LARGEST / hidden_BD.abs().amax(1, keepdim=True))
        whole_BD = scaled_BD.round()
        product_BV = torch.ops.onednn.qlinear_pointwise(
            whole_BD.add(LARGEST).to(torch.uint8), 1.0, LARGEST, self.packed, self.one, self.zero, None, 1.0, 0,
            torch.float32, "none", [], "",
        )  # fmt: skip
        lengths, rests = (torch.linalg.vector_norm(part, dim=1).tolist() for part in (whole_BD, scaled_BD - whole_BD))
        errors = [SLACK * (self.norm * (f + self.least) + self.rest * p) for p, f in zip(lengths, rests, strict=True)]
        return product_BV, errors


def fingerprint(weight_VD: Tensor) -> Tensor:
    """Return a number for each row that changes with any weight: its product with random numbers, (V,)."""
    generator = torch.Generator().manual_seed(0)
    return torch.mv(weight_VD, torch.rand(weight_VD.shape[1], generator=generator).add_(0.5))


KNOWN: WeakIdKeyDictionary = WeakIdKeyDictionary()


def screen_of(weight_VD: Tensor) -> Screen:
    """Return the screen made before if no weight has changed (in-place writes leave no other trace), or a new one."""
    screen = KNOWN.get(weight_VD)
    if screen is None or not torch.equal(screen.fingerprint, fingerprint(weight_VD)):
        screen = KNOWN[weight_VD] = Screen(weight_VD)
    return screen


def can_screen(head: nn.Module) -> bool:
    """Whether a screen of this output matrix is right and pays: plain, fp32, large, on a CPU that multiplies int8."""
    if type(head) is not nn.Linear or head.bias is not None or watched(head):
        return False
    weight = head.weight
    if type(weight) is not nn.Parameter or weight.dtype != torch.float32 or weight.device.type != "cpu":
        return False
    return weight.numel() >= SMALLEST_MATRIX and weight.shape[1] in WIDTHS and kernel_is_exact()


@cache
def kernel_is_exact() -> bool:
    """Whether torch has a kernel for 8-bit integers here, and one that loses no bit of the largest products."""
    weight_VD = torch.ones(64, 64)
    weight_VD[::2] = -1
    try:
        product_BV, _ = Screen(weight_VD).rough(torch.ones(1, 64))
    except (RuntimeError, AttributeError, TypeError):  # no kernel for this CPU, or another one in this torch
        return False
    return torch.equal(product_BV[0], weight_VD[:, 0] * 127 * LARGEST * 64)
