"""One decoded token at a time, lean: what ``generate()`` and the evaluator run after the prompt.

At batch 1 a step is overhead, not arithmetic: the module tree costs more than the products it calls. For the length of
an answer a ``DecodeStep`` holds each layer's tensors, with the three input projections as one matrix, and runs a
layer in about 25 calls; ``GrowingCache`` writes keys and values in place instead of copying the whole cache each token.
The numbers are those of the module tree up to rounding. Anything that the plain tree must see (hooks, adapters,
quantised or partitioned weights, other kernels than sdpa, blockwise attention) keeps it.
"""

from __future__ import annotations

from copy import copy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from .configuration_kosmos import KosmosTextConfig
from .cross_attention import Held
from .decoder import KosmosAttention, KosmosBlock, KosmosDecoder, KosmosFeedForward
from .route_sets import HeldRoutes


class GrowingLayer(DynamicLayer):
    """A dynamic cache layer over a buffer that doubles when full: appending a token copies that token only."""

    buffer: Tensor | None = None  # (B, 2, H, capacity, K), keys and values side by side

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append (B, H, T, K) keys and values; return all, as views of the buffer if equally wide."""
        if key_states.shape != value_states.shape:  # DeepSeek's attention
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        room = self._room(key_states.shape[2])
        room[:, 0].copy_(key_states)
        room[:, 1].copy_(value_states)
        return self._lengthen(key_states.shape[2])

    def append(self, new: Tensor) -> tuple[Tensor, Tensor]:
        """``update`` for keys and values in one tensor, (B, 2, H, T, K)."""
        if not self.is_initialized:
            return self.update(new[:, 0], new[:, 1])
        self._room(new.shape[3]).copy_(new)
        return self._lengthen(new.shape[3])

    def _room(self, length: int) -> Tensor:
        """Where the next keys and values go, (B, 2, H, length, K)."""
        seen, buffer = self.keys.shape[2], self.buffer
        if buffer is None or seen + length > buffer.shape[3] or not self._views(buffer):
            buffer = self._grow(seen + length)
        return buffer.narrow(3, seen, length)

    def _lengthen(self, length: int) -> tuple[Tensor, Tensor]:
        """Return all keys and values, those with them that were just written."""
        assert self.buffer is not None
        self.keys, self.values = self.buffer.narrow(3, 0, self.keys.shape[2] + length).unbind(1)
        return self.keys, self.values

    def _views(self, buffer: Tensor) -> bool:
        """Whether keys are still what was made here: to reorder, choose or repeat rows puts other tensors there."""
        return self.keys.data_ptr() == buffer.data_ptr() and len(self.keys) == len(buffer)

    def _grow(self, length: int) -> Tensor:
        """Copy keys and values to a buffer for ``length`` tokens and some more."""
        rows, heads, seen, width = self.keys.shape
        # a quarter more: then each token is copied about four times however many follow. Not more than short answers
        # need: a batch's buffers of many megabytes come fresh from the system, page by page, ten times as slowly
        self.buffer = self.keys.new_empty(rows, 2, heads, length + max(length // 4, 16), width)
        self.buffer[:, 0, :, :seen], self.buffer[:, 1, :, :seen] = self.keys, self.values
        return self.buffer

    def reset(self) -> None:
        """Forget everything."""
        self.buffer = None
        super().reset()


class GrowingCache(DynamicCache):
    """A dynamic cache of ``GrowingLayer``; what ``generate()`` uses unless told otherwise, and the evaluator."""

    def __init__(self, config: KosmosTextConfig) -> None:
        super().__init__(config=config)
        self.layers = [GrowingLayer() for _ in range(config.num_hidden_layers)]
        self.media: Held | None = None  # what cross-attention looks at
        self.routes: HeldRoutes | None = None  # where persona and context are, for routed layers

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        super().batch_select_indices(indices)
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        super().batch_repeat_interleave(repeats)
        if self.get_seq_length():
            keys = self.layers[0].keys
            self._select(torch.arange(len(keys) // repeats, device=keys.device).repeat_interleave(repeats))

    def _select(self, rows: Tensor) -> None:
        self.media = self.media and self.media.select(rows)
        self.routes = self.routes and self.routes.select(rows)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.media = self.routes = None

    def select(self, rows: Tensor) -> GrowingCache:
        """Return a copy of the given rows, repeated or left out as the index says."""
        chosen = copy(self)
        chosen.layers = [copy(layer) for layer in self.layers]
        chosen.batch_select_indices(rows)
        return chosen


class LayerTensors(NamedTuple):
    """The tensors of one block in the order of use; weights transposed, ``qkv`` the three input projections as one."""

    attention_norm: tuple[Tensor, Tensor]
    qkv: tuple[Tensor, Tensor]
    inner_norm: tuple[Tensor, Tensor]
    out: tuple[Tensor, Tensor]
    ffn_norm: tuple[Tensor, Tensor]
    fc1: tuple[Tensor, Tensor]
    fc1_norm: tuple[Tensor, Tensor]
    fc2: tuple[Tensor, Tensor]


class Workspace:
    """What every layer writes its projections to, with the views that rotation, cache and attention take of it."""

    def __init__(self, rows: int, heads: int, width: int, like: Tensor) -> None:
        self.rows = rows
        self.qkv = like.new_empty(rows, 3 * width)
        # rotations are computed in fp32 whatever the model's dtype: in fp32 in place
        self.wide = self.qkv if like.dtype == torch.float32 else self.qkv.float()
        # odd head widths have no pairs, and positions that rotate refuse them
        even = width // heads % 2 == 0
        self.pairs = torch.view_as_complex(self.wide.view(rows, 3, heads, -1, 2)) if even else None
        by_head = self.qkv.view(rows, 3, heads, 1, -1)
        self.query, self.key, self.value = by_head.unbind(1)
        self.key_value = by_head.narrow(1, 1, 2)

    def turn(self, rotation: Tensor) -> None:
        """Rotate queries and keys in place by factors (B, 3, 1, K/2)."""
        if self.wide is not self.qkv:
            self.wide.copy_(self.qkv)
        torch.mul(self.pairs, rotation, out=self.pairs)
        if self.wide is not self.qkv:
            self.qkv.copy_(self.wide)


class DecodeStep:
    """The decoder for one new token a row. Holds weights of the moment: make one for each answer."""

    def __init__(self, decoder: KosmosDecoder) -> None:
        self.decoder = decoder
        self.heads = decoder.config.num_attention_heads
        self.eps = decoder.config.layer_norm_eps
        self.scaling = (decoder.config.hidden_size // self.heads) ** -0.5
        self.layers: list[LayerTensors] = []  # made with the first token: many calls only read a prompt
        self.width, self.ffn_width = (decoder.config.hidden_size,), (decoder.config.intermediate_size,)
        self.last_norm = decoder.layer_norm.weight, decoder.layer_norm.bias
        self.scaled_gelu = decoder.config.hidden_act == "gelu" and _is_cpu_fp32(decoder.layer_norm.weight)
        self.activation = gelu_by_norm if self.scaled_gelu else decoder.layers[0].ffn.activation
        self.workspace: Workspace | None = None
        self.rotations: Tensor | None = None
        self.padded: tuple[Cache, bool] | None = None

    def __call__(
        self,
        embeds_BD: Tensor,
        position_ids_B1: Tensor,
        attention_mask: Tensor | None,
        cache: Cache,
        position_in_span_B1: Tensor | None = None,
    ) -> Tensor:
        """Return the hidden states after the final norm, (B, D), and append to the cache.

        Args:
            embeds_BD: unscaled embeddings of the new tokens.
            position_ids_B1: their positions, (B, 1) or (1, 1).
            attention_mask: (B, seen + 1) as ``generate()`` keeps it, or a 4-D mask of a static cache.
            cache: a transformers cache.
            position_in_span_B1: GLM's second position.
        """
        hidden = (embeds_BD * self.decoder.embed_scale)[:, None]
        hidden = self.decoder.positions.add_to(hidden, position_ids_B1, position_in_span_B1)[:, 0]
        rotation, mask = self._rotation(position_ids_B1), self._mask(attention_mask, cache)
        work = self._workspace(embeds_BD)
        if not self.layers:
            self.layers = [_tensors(layer) for layer in self.decoder.layers]
        layer_norm, addmm, eps = torch.layer_norm, torch.addmm, self.eps
        inner_scale, inner_eps = (0.5**0.5, 2 * eps) if self.scaled_gelu else (1, eps)
        for index, layer in enumerate(self.layers):
            normed = layer_norm(hidden, self.width, *layer.attention_norm, eps)
            weight, bias = layer.qkv
            addmm(bias, normed, weight, out=work.qkv)
            attended = self._attend(work, rotation, mask, cache, index)
            hidden = _add(hidden, layer_norm(attended, self.width, *layer.inner_norm, eps), layer.out)
            normed = layer_norm(hidden, self.width, *layer.ffn_norm, eps)
            weight, bias = layer.fc1
            inner = self.activation(addmm(bias, normed, weight, beta=inner_scale, alpha=inner_scale))
            hidden = _add(hidden, layer_norm(inner, self.ffn_width, *layer.fc1_norm, inner_eps), layer.fc2)
        return layer_norm(hidden, self.width, *self.last_norm, eps)

    def _attend(
        self, work: Workspace, rotation: Tensor | None, mask: Tensor | None, cache: Cache, index: int
    ) -> Tensor:
        if rotation is not None:
            work.turn(rotation)
        if type(cache) is GrowingCache:
            keys, values = cache.layers[index].append(work.key_value)
        else:  # all caches of transformers copy what they are given
            keys, values = cache.update(work.key, work.value, index)
        attended = F.scaled_dot_product_attention(work.query, keys, values, attn_mask=mask, scale=self.scaling)
        return attended.reshape(work.rows, -1)

    def _workspace(self, embeds_BD: Tensor) -> Workspace:
        work = self.workspace
        # what was made in inference mode cannot be written to outside of it
        if work is None or work.rows != len(embeds_BD) or work.qkv.is_inference() != torch.is_inference_mode_enabled():
            work = self.workspace = Workspace(len(embeds_BD), self.heads, self.width[0], embeds_BD)
        return work

    def _rotation(self, position_ids_B1: Tensor) -> Tensor | None:
        """Return the factors of queries, keys and, so that one product does it all, 1 for values: (B, 3, 1, K/2)."""
        if not self.decoder.positions.rotates:
            return None
        if position_ids_B1.device.type != "cpu":  # to look a position up would be to wait for the device
            return self._factors(position_ids_B1)
        last = int(position_ids_B1.max())
        if self.rotations is None or last >= len(self.rotations):
            self.rotations = self._factors(torch.arange(max(2 * last, 64), device="cpu")[:, None])
        return self.rotations.index_select(0, position_ids_B1[:, 0])

    def _factors(self, position_ids_N1: Tensor) -> Tensor:
        rotation = self.decoder.positions.rotation(position_ids_N1)
        assert rotation is not None
        factors = torch.view_as_complex(rotation)
        return torch.cat([factors, torch.ones_like(factors[:, :, :1])], dim=2)[:, 0]

    def _mask(self, attention_mask: Tensor | None, cache: Cache) -> Tensor | None:
        """Return what sdpa needs. A mask of ones stays one as long as its cache grows, so it is looked at once."""
        if attention_mask is None or attention_mask.ndim == 4:
            return attention_mask
        if self.padded is None or self.padded[0] is not cache:
            self.padded = cache, not bool(attention_mask.all())
        return attention_mask.bool()[:, None, None] if self.padded[1] else None


class ModuleStep:
    """A decoder of transformers for one new token a row, by its own modules; what ``DecodeStep`` is to ours."""

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder

    def __call__(
        self,
        embeds_BD: Tensor,
        position_ids_B1: Tensor,
        attention_mask: Tensor | None,
        cache: Cache,
        position_in_span_B1: Tensor | None = None,
    ) -> Tensor:
        """The arguments and the result are those of ``DecodeStep``."""
        return self.decoder(
            embeds_BD[:, None], attention_mask, position_ids_B1, cache, use_cache=True,
            position_in_span=position_in_span_B1,
        ).last_hidden_state[:, 0]  # fmt: skip


def _add(hidden_BD: Tensor, normed: Tensor, projection: tuple[Tensor, Tensor]) -> Tensor:
    weight, bias = projection
    return torch.addmm(bias, normed, weight).add_(hidden_BD)


def gelu_by_norm(half_BF: Tensor) -> Tensor:
    """√2 gelu(x) for x/√2 in two kernels: x/√2 + x/√2 erf(x/√2). The norm that follows takes the factor out again."""
    return torch.addcmul(half_BF, half_BF, torch.erf(half_BF))


def _is_cpu_fp32(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32


def can_step(decoder: KosmosDecoder) -> bool:
    """Whether ``DecodeStep`` computes what the modules would: as they were built, unwatched, attention by sdpa."""
    config = decoder.config
    if config._attn_implementation != "sdpa" or config.blockwise_causal_length is not None or config.routing_layers:
        return False
    if torch.is_autocast_enabled(decoder.layer_norm.weight.device.type) or nn.modules.module._has_any_global_hook():
        return False
    if type(decoder) is not KosmosDecoder or watched(decoder) or not all(map(_as_built, decoder.layers)):
        return False
    parameters = [*decoder.layers.parameters(), *decoder.layer_norm.parameters()]
    if any(type(parameter) is not nn.Parameter or hasattr(parameter, "ds_id") for parameter in parameters):
        return False
    return len({(parameter.dtype, parameter.device) for parameter in parameters}) == 1


def _as_built(layer: nn.Module) -> bool:
    """Whether no module of a block was replaced or is watched; adapters and quantisation do the one or the other."""
    if type(layer) is not KosmosBlock:
        return False
    modules = list(layer.modules())
    plain = all(type(module) in PLAIN or module is layer.ffn.activation for module in modules)
    return plain and not any(map(watched, modules))


PLAIN = (KosmosBlock, KosmosAttention, KosmosFeedForward, nn.Linear, nn.LayerNorm)


def watched(module: nn.Module) -> bool:
    """Whether somebody hooked into this module or gave it a ``forward`` of its own, so that it must be called."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    return bool(hooks) or hasattr(module, "_hf_hook") or "forward" in vars(module)


def _tensors(layer: KosmosBlock) -> LayerTensors:
    attention, ffn = layer.self_attn, layer.ffn
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)

    def norm(module: Any) -> tuple[Tensor, Tensor]:
        return module.weight, module.bias

    def projection(module: Any) -> tuple[Tensor, Tensor]:
        return module.weight.t(), module.bias

    return LayerTensors(
        attention_norm=norm(layer.self_attn_layer_norm),
        qkv=(torch.cat([p.weight for p in projections]).t(), torch.cat([p.bias for p in projections])),
        inner_norm=norm(attention.inner_attn_ln),
        out=projection(attention.out_proj),
        ffn_norm=norm(layer.final_layer_norm),
        fc1=projection(ffn.fc1),
        fc1_norm=norm(ffn.ffn_layernorm),
        fc2=projection(ffn.fc2),
    )
