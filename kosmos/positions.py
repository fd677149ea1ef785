"""Positions: xPos, RoPE, sinusoidal, and GLM's learned two-dimensional tables behind one interface.

xPos (arXiv 2212.10554, Alg. 1; torchscale) rotates the pairs (0,1), (2,3), … of a head by n·θ_j and stretches queries
by ζ_j^(n/B), keys by ζ_j^(-n/B). Both are one complex factor exp((n - c)·(±log ζ_j / B + i·θ_j)), so a head is turned
by a single complex product, computed in fp32 whatever the model's dtype. Scores depend only on the distance, hence the
centre c is free; half of the training length keeps the factors small. RoPE is the same with ζ = 1.

The factor is kept as a pair of real numbers: inductor generates no code for complex ones, and each product of a
compiled block would be four kernels of its own with copies between them. On a CPU the complex product is the faster
one, and the same to the last bit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .compiled import compiled
from .configuration_kosmos import KosmosTextConfig


class KosmosPositions(nn.Module):
    """What a position adds to the embeddings, and how it turns queries and keys.

    No buffer is kept: buffers that are not saved come back as garbage from ``from_pretrained``'s meta device.
    """

    def __init__(self, config: KosmosTextConfig) -> None:
        super().__init__()
        self.config = config
        self._rates: dict[torch.device, Tensor] = {}
        if config.position_type == "learned_2d":
            self.first = nn.Embedding(config.max_position_embeddings, config.hidden_size)
            self.second = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def add_to(
        self, hidden_BTD: Tensor, position_ids_BT: Tensor, position_in_span_BT: Tensor | None, checked: bool = False
    ) -> Tensor:
        """Return ``hidden_BTD`` plus its absolute positions (unchanged for xpos and rope).

        ``checked``: that the tables hold them is known, and need not be asked of the device.
        """
        if not checked:
            self.check(position_ids_BT, position_in_span_BT)
        kind = self.config.position_type
        if kind == "sinusoidal":
            table = sinusoid(position_ids_BT, hidden_BTD.shape[-1], first_sinusoid(self.config.pad_token_id))
            return hidden_BTD + table.to(hidden_BTD.dtype)
        if kind == "learned_2d":
            hidden_BTD = hidden_BTD + self.first(position_ids_BT.clamp(min=0))
            if position_in_span_BT is None:
                position_in_span_BT = torch.zeros_like(position_ids_BT)
            return hidden_BTD + self.second(position_in_span_BT)
        return hidden_BTD

    def check(self, position_ids_BT: Tensor, position_in_span_BT: Tensor | None) -> None:
        """Refuse positions that the tables do not hold.

        Raises:
            ValueError: a second position without a table for it, or a position behind the end of a learned table.
        """
        kind = self.config.position_type
        if position_in_span_BT is not None and kind != "learned_2d":
            raise ValueError(
                f"position_in_span was given, but text_config.position_type is {kind!r}: only 'learned_2d' reads it; "
                "set it, or the objective's two_positions to false"
            )
        if kind == "learned_2d":
            self._check_range("position_ids", position_ids_BT)
            if position_in_span_BT is not None:
                self._check_range("position_in_span", position_in_span_BT)

    @property
    def rotates(self) -> bool:
        """Whether queries and keys are turned, rather than positions added."""
        return self.config.position_type in ("xpos", "rope")

    def rotation(self, position_ids_BT: Tensor) -> Tensor | None:
        """Return the factors of queries and keys, (B, T, 2, 1, K/2, 2) fp32, or None for absolute positions.

        The last axis holds the real and the imaginary part.
        """
        if not self.rotates:
            return None
        if torch.compiler.is_exporting():  # formats for graphs know no complex numbers
            centred = self._centred(position_ids_BT)
            growth, theta = rate_parts(self.config, position_ids_BT.device)
            size = torch.exp(centred * torch.stack([growth, -growth])[:, None])
            return torch.stack([size * torch.cos(centred * theta), size * torch.sin(centred * theta)], dim=-1).float()
        # rows of a batch have mostly the same positions: each is computed once where looking does not mean waiting
        looks = position_ids_BT.device.type == "cpu" and len(position_ids_BT) > 1
        if looks and type(position_ids_BT) is Tensor and not torch.compiler.is_compiling():
            first, last = (int(end) for end in position_ids_BT.aminmax())
            if last - first < position_ids_BT.numel() // 2:
                return self._factors(torch.arange(first, last + 1))[position_ids_BT - first]
        return self._factors(position_ids_BT)

    def _centred(self, position_ids: Tensor) -> Tensor:
        return (position_ids - self.config.max_position_embeddings // 2)[..., None, None, None]

    def _factors(self, position_ids: Tensor) -> Tensor:
        """The factors of positions of any shape, (…, 2, 1, K/2, 2) fp32."""
        rate = self._rate(position_ids.device)
        return torch.view_as_real(torch.exp(self._centred(position_ids) * rate).to(torch.complex64))

    def _rate(self, device: torch.device) -> Tensor:
        if device not in self._rates:
            # angles reach thousands of radians: fp32 would be off by 1e-4 there (Apple's GPUs have no fp64)
            dtype = torch.complex64 if device.type == "mps" else torch.complex128
            self._rates[device] = rotation_rate(self.config).to(dtype).to(device)
        return self._rates[device]

    def _check_range(self, name: str, ids: Tensor) -> None:
        limit = self.config.max_position_embeddings
        if ids.numel() and not torch.compiler.is_compiling() and (largest := int(ids.max())) >= limit:
            raise ValueError(
                f"{name} reaches {largest}, but the learned table ends at {limit - 1} "
                f"(text_config.max_position_embeddings={limit}); shorten the input or train with a larger table"
            )


def rotation_rate(config: KosmosTextConfig) -> Tensor:
    """Return the complex log-factor per position for queries and keys, (2, 1, K/2) complex128, on the CPU."""
    growth, theta = rate_parts(config, torch.device("cpu"))  # whatever device the model is built on
    return torch.stack([torch.complex(growth, theta), torch.complex(-growth, theta)])[:, None]


def rate_parts(config: KosmosTextConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the growth of queries and the angle, both per position, (K/2,) fp64."""
    head_dim = config.hidden_size // config.num_attention_heads
    pair = torch.arange(head_dim // 2, dtype=torch.float64, device=device)
    theta = 10000.0 ** (-pair / (head_dim // 2))
    growth = torch.zeros_like(theta)
    if config.position_type == "xpos":
        growth = ((2 * pair + 0.4 * head_dim) / (1.4 * head_dim)).log() / config.xpos_scale_base
    return growth, theta


def rotate(query_BTHK: Tensor, key_BTHK: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor]:
    """Turn and stretch queries and keys in fp32, each back in its own dtype; ``rotation`` is (B, T, 2, 1, K/2, 2)."""
    return turn(query_BTHK, rotation[:, :, 0]), turn(key_BTHK, rotation[:, :, 1])


def turn(heads_BTHK: Tensor, factor: Tensor) -> Tensor:
    """Multiply the pairs (0,1), (2,3), … of every head, read as complex numbers, by ``factor`` (B, T, 1, K/2, 2)."""
    if torch.compiler.is_compiling():
        return turn_pairs(heads_BTHK, factor)
    if heads_BTHK.is_cuda and heads_BTHK.requires_grad:  # as single kernels the real product is the slower one
        return compiled(turn_pairs)(heads_BTHK, factor)
    pairs = torch.view_as_complex(heads_BTHK.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.view_as_complex(factor)).flatten(-2).to(heads_BTHK.dtype)


def turn_pairs(heads_BTHK: Tensor, factor: Tensor) -> Tensor:
    """Do the same as ``turn``, in real arithmetic."""
    (real, imaginary), (a, b) = factor.unbind(-1), heads_BTHK.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([a * real - b * imaginary, a * imaginary + b * real], dim=-1)
    return turned.flatten(-2).to(heads_BTHK.dtype)


def count_positions(real_BT: Tensor) -> Tensor:
    """Count real tokens from 0, (B, T); padding gets -1, the position without a sinusoid."""
    real_BT = real_BT.long()
    return real_BT.cumsum(1) * real_BT - 1


def first_sinusoid(pad_token_id: int | None) -> int:
    """Where fairseq, and so KOSMOS-2's weights, begin to count: behind the id of padding, 1 in every preset."""
    return 2 if pad_token_id is None else pad_token_id + 1


def sinusoid(position_ids_BT: Tensor, width: int, first: int = 2) -> Tensor:
    """Return fairseq's sinusoid, sines in the first half and cosines in the second, (B, T, width) fp32; -1 gives 0."""
    half = width // 2
    frequency = torch.exp(torch.arange(half, device=position_ids_BT.device).float() * -(math.log(10000) / (half - 1)))
    angle = (position_ids_BT[..., None] + first).float() * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1) * (position_ids_BT >= 0)[..., None]
