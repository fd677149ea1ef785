"""One decoded token at a time, lean: what ``generate()`` runs after the prompt.

At batch 1 a step is overhead, not arithmetic: the module tree costs more than the products it calls. Inside
``generate()`` a ``DecodeStep`` holds each layer's tensors, with the three input projections as one matrix, and runs a
layer in about 25 calls; ``GrowingCache`` writes keys and values in place instead of copying the whole cache each token.
The numbers are those of the module tree up to rounding. Anything that the plain tree must see (hooks, adapters,
quantised or partitioned weights, other kernels than sdpa, blockwise attention) keeps it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from .configuration_kosmos import KosmosTextConfig

if TYPE_CHECKING:
    from .decoder import KosmosBlock, KosmosDecoder


class GrowingLayer(DynamicLayer):
    """A dynamic cache layer over a buffer that doubles when full: appending a token copies that token only."""

    buffer: Tensor | None = None  # (B, 2, H, capacity, K), keys and values side by side

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append (B, H, T, K) keys and values; return all of them as views of the buffer."""
        return self.append(torch.stack([key_states, value_states], dim=1))

    def append(self, new: Tensor) -> tuple[Tensor, Tensor]:
        """``update`` for keys and values in one tensor, (B, 2, H, T, K)."""
        if not self.is_initialized:
            self.lazy_initialization(new[:, 0], new[:, 1])
            self.keys, self.values = new[:, 0, :, :0], new[:, 1, :, :0]
        seen, length = self.keys.shape[2], new.shape[3]
        buffer = self.buffer
        # reordering beams or repeating rows puts other tensors in the place of the views
        if buffer is None or seen + length > buffer.shape[3] or self.keys.data_ptr() != buffer.data_ptr():
            buffer = self._grow(max(2 * (seen + length), 64))
        buffer.narrow(3, seen, length).copy_(new)
        self.keys, self.values = buffer.narrow(3, 0, seen + length).unbind(1)
        return self.keys, self.values

    def _grow(self, capacity: int) -> Tensor:
        rows, heads, seen, width = self.keys.shape
        self.buffer = self.keys.new_empty(rows, 2, heads, capacity, width)
        self.buffer[:, 0, :, :seen], self.buffer[:, 1, :, :seen] = self.keys, self.values
        return self.buffer

    def reset(self) -> None:
        """Forget everything."""
        self.buffer = None
        super().reset()


class GrowingCache(DynamicCache):
    """A dynamic cache of ``GrowingLayer``; what ``generate()`` uses unless told otherwise."""

    def __init__(self, config: KosmosTextConfig) -> None:
        super().__init__(config=config)
        self.layers = [GrowingLayer() for _ in range(config.num_hidden_layers)]


class LayerTensors(NamedTuple):
    """The tensors of one block; ``qkv`` are the three input projections as one (weight, bias)."""

    attention_norm: tuple[Tensor, Tensor]
    qkv: tuple[Tensor, Tensor]
    inner_norm: tuple[Tensor, Tensor]
    out: tuple[Tensor, Tensor]
    ffn_norm: tuple[Tensor, Tensor]
    fc1: tuple[Tensor, Tensor]
    fc1_norm: tuple[Tensor, Tensor]
    fc2: tuple[Tensor, Tensor]


class DecodeStep:
    """The decoder for one new token a row. Holds weights of the moment: make one for each ``generate()``."""

    def __init__(self, decoder: KosmosDecoder) -> None:
        self.decoder = decoder
        self.heads = decoder.config.num_attention_heads
        self.eps = decoder.config.layer_norm_eps
        self.scaling = (decoder.config.hidden_size // self.heads) ** -0.5
        self.layers = [_tensors(layer) for layer in decoder.layers]
        self.width, self.ffn_width = (decoder.config.hidden_size,), (decoder.config.intermediate_size,)
        self.last_norm = decoder.layer_norm.weight, decoder.layer_norm.bias
        self.activation = F.gelu if decoder.config.hidden_act == "gelu" else decoder.layers[0].ffn.activation
        self.padded: bool | None = None

    def __call__(
        self, embeds_BD: Tensor, position_ids_B1: Tensor, attention_mask: Tensor | None, cache: Cache
    ) -> Tensor:
        """Return the hidden states after the final norm, (B, D), and append to the cache.

        Args:
            embeds_BD: unscaled embeddings of the new tokens.
            position_ids_B1: their positions.
            attention_mask: (B, seen + 1) as ``generate()`` keeps it, or a 4-D mask of a static cache.
        """
        hidden = (embeds_BD * self.decoder.embed_scale)[:, None]
        hidden = self.decoder.positions.add_to(hidden, position_ids_B1, None)[:, 0]
        rotation, mask = self._rotation(position_ids_B1), self._mask(attention_mask)
        layer_norm, linear, eps = torch.layer_norm, F.linear, self.eps
        for index, layer in enumerate(self.layers):
            normed = layer_norm(hidden, self.width, *layer.attention_norm, eps)
            attended = self._attend(linear(normed, *layer.qkv), rotation, mask, cache, index)
            normed = layer_norm(attended, self.width, *layer.inner_norm, eps)
            hidden = hidden + linear(normed, *layer.out)
            normed = layer_norm(hidden, self.width, *layer.ffn_norm, eps)
            inner = self.activation(linear(normed, *layer.fc1))
            normed = layer_norm(inner, self.ffn_width, *layer.fc1_norm, eps)
            hidden = hidden + linear(normed, *layer.fc2)
        return layer_norm(hidden, self.width, *self.last_norm, eps)

    def _attend(self, qkv: Tensor, rotation: Tensor | None, mask: Tensor | None, cache: Cache, index: int) -> Tensor:
        rows = len(qkv)
        if rotation is not None:
            pairs = torch.view_as_complex(qkv.float().view(rows, 3, self.heads, -1, 2))
            qkv = torch.view_as_real(pairs * rotation).to(qkv.dtype)
        heads = qkv.view(rows, 3, self.heads, 1, -1)
        if type(cache) is GrowingCache:
            keys, values = cache.layers[index].append(heads.narrow(1, 1, 2))
        else:
            keys, values = cache.update(heads.select(1, 1), heads.select(1, 2), index)
        query = heads.select(1, 0)
        attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=self.scaling)
        return attended.reshape(rows, -1)

    def _rotation(self, position_ids_B1: Tensor) -> Tensor | None:
        """Return the factors of queries, keys and, so that one product does it all, 1 for values: (B, 3, 1, K/2)."""
        rotation = self.decoder.positions.rotation(position_ids_B1)
        if rotation is None:
            return None
        rotation = rotation[:, 0]
        return torch.cat([rotation, torch.ones_like(rotation[:, :1])], dim=1)

    def _mask(self, attention_mask: Tensor | None) -> Tensor | None:
        """Return what sdpa needs. A mask of ones stays one throughout a ``generate()``, so it is looked at once."""
        if attention_mask is None or attention_mask.ndim == 4:
            return attention_mask
        if self.padded is None:
            self.padded = not bool(attention_mask.all())
        return attention_mask.bool()[:, None, None] if self.padded else None


def can_step(decoder: KosmosDecoder) -> bool:
    """Whether ``DecodeStep`` computes what the modules would: plain layers without hooks, attention by sdpa."""
    config = decoder.config
    if config._attn_implementation != "sdpa" or config.blockwise_causal_length is not None:
        return False
    plain = (nn.Linear, nn.LayerNorm)
    for layer in decoder.layers:
        attention, ffn = layer.self_attn, layer.ffn
        leaves = [attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj, ffn.fc1, ffn.fc2]
        leaves += [layer.self_attn_layer_norm, attention.inner_attn_ln, layer.final_layer_norm, ffn.ffn_layernorm]
        if any(type(leaf) not in plain or hasattr(leaf.weight, "ds_id") for leaf in leaves):
            return False
        if any(_watched(module) for module in (layer, attention, ffn, *leaves)):
            return False
    return not _watched(decoder)


def _watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks) or hasattr(module, "_hf_hook")


def _tensors(layer: KosmosBlock) -> LayerTensors:
    attention, ffn = layer.self_attn, layer.ffn
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)

    def pair(module: Any) -> tuple[Tensor, Tensor]:
        return module.weight, module.bias

    return LayerTensors(
        attention_norm=pair(layer.self_attn_layer_norm),
        qkv=(torch.cat([p.weight for p in projections]), torch.cat([p.bias for p in projections])),
        inner_norm=pair(attention.inner_attn_ln),
        out=pair(attention.out_proj),
        ffn_norm=pair(layer.final_layer_norm),
        fc1=pair(ffn.fc1),
        fc1_norm=pair(ffn.ffn_layernorm),
        fc2=pair(ffn.fc2),
    )
