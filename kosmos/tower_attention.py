"""Self-attention of open_clip's towers in the layout of their rows.

torch's ``nn.MultiheadAttention`` puts the tokens before the rows: queries, keys and values are copied into that layout
and what was attended out of it, 0.4 of the 1.3 GB that a block of 108 pictures moves on a GPU. Here the three are views
of one product. Parameters, their names and the result are the same (tests/kosmos/test_encoders.py).
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class TowerAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` that reads and writes (I, P, C) without a copy, where tokens attend to each other."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """As torch's; weights are returned only by its own way, which masks and attention to others take."""
        plain = query is key and key is value and not args and kwargs.get("attn_mask") is None
        if not plain or kwargs.get("need_weights", True) or kwargs.get("key_padding_mask") is not None:
            return super().forward(query, key, value, *args, **kwargs)
        joined = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        states = [part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in joined.chunk(3, dim=-1)]
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(states[0], states[1], states[2], dropout_p=dropout)
        return self.out_proj(attended.transpose(1, 2).flatten(2)), None


def join_attention(encoder: nn.Module) -> None:
    """Let the self-attention of an open_clip encoder be a ``TowerAttention``; its weights stay what they are."""
    for module in encoder.modules():
        # not one with keys and values of other widths, or with keys of its own
        plain = type(module) is nn.MultiheadAttention and module.batch_first and module._qkv_same_embed_dim
        if plain and module.bias_k is None and not module.add_zero_attn:
            module.__class__ = TowerAttention
