"""The coupling that MetaLM did not take (arXiv 2206.06336, figure 2a): gated cross-attention, as in Flamingo.

    x = x + tanh(α) · Wo · attention(q: LN(x), k and v: features of the last image before the token)
    x = x + tanh(β) · W2 · gelu(W1 · LN(x))                     before every n-th layer of the decoder

An image takes one place in the text, where its placeholder keeps an embedding of its own; its features go to these
layers instead of into the row (arXiv 2204.14198, section 2.2). Both gates begin at 0, so that a new model computes what
its decoder alone does. A token before the first image of its document attends to nothing, and what follows it is the
feed-forward part only. Equal to open_flamingo's ``GatedCrossAttentionBlock``.

While a row is decoded, its cache holds the features of its last image, and their keys and values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.cache_utils import DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer

from .initialization import init_default, init_norm, linear

KeysValues = tuple[Tensor, Tensor]


@dataclass
class Held:
    """The last image of each row, kept with the cache.

    Attributes:
        features_BQD: its features.
        there_B: whether there is one.
        some: whether any row has one.
        keys: keys and values of these features by layer, once they are made.
    """

    features_BQD: Tensor
    there_B: Tensor
    some: bool
    keys: dict[int, KeysValues] = field(default_factory=dict)

    def select(self, rows: Tensor) -> Held:
        """Return what belongs to these rows, repeated or left out as the index says."""
        keys = {layer: (key[rows], value[rows]) for layer, (key, value) in self.keys.items()}
        return Held(self.features_BQD[rows], self.there_B[rows], self.some, keys)


class Media:
    """What the layers of one forward pass attend to.

    Tokens that see one image stand together in a row, so their queries are computed as runs: R runs of at most L
    tokens, each against the Q features of one image, without a mask and without keys that nobody sees.

    Args:
        features_MQD: of images.
        image_BT: which of them each token sees, -1: none.
        keys: keys and values by layer, made before or to be kept.
    """

    def __init__(self, features_MQD: Tensor, image_BT: Tensor, keys: dict[int, KeysValues]) -> None:
        self.features_MQD, self.keys = features_MQD, keys
        image_N = image_BT.flatten()
        begins = torch.ones_like(image_N, dtype=torch.bool)
        begins[1:] = image_N[1:] != image_N[:-1]
        begins &= image_N >= 0
        starts_R = begins.nonzero()[:, 0]
        self.image_R = image_N[starts_R]
        run_N = begins.cumsum(0) - 1
        self.seeing_S = (image_N >= 0).nonzero()[:, 0]  # the tokens that see one, in order
        self.run_S = run_N[self.seeing_S]
        self.turn_S = self.seeing_S - starts_R[self.run_S]

    def keys_values(self, layer: GatedCrossAttention) -> KeysValues:
        """Return keys and values (M, H, Q, K) of a layer; kept for later passes, but not in training."""
        if (made := self.keys.get(layer.index)) is not None:
            return made
        both = layer.kv_proj(self.features_MQD).unflatten(-1, (2, layer.num_heads, -1))
        made = both[:, :, 0].transpose(1, 2), both[:, :, 1].transpose(1, 2)
        if not torch.is_grad_enabled():  # a checkpointed layer must compute the same again
            self.keys[layer.index] = made
        return made


def see_images(
    features_IQD: Tensor, places_BT: Tensor, documents_BT: Tensor | None, held: Held | None, keep: bool
) -> tuple[Media, Held | None]:
    """Tell for each token which image is the last before it, or at it, in its document.

    Args:
        features_IQD: of the images of this pass, in the row-major order of their places.
        places_BT: True where an image stands.
        documents_BT: of packed rows; None: a row is one document.
        held: images of what was read before.
        keep: whether more is to be read.

    Returns:
        What layers attend to, and what the cache holds afterwards (None unless ``keep``).
    """
    images, rows = len(features_IQD), len(places_BT)
    inside_BT = places_BT.cumsum(1)
    seen_BT = inside_BT > 0
    image_BT = places_BT.flatten().cumsum(0).view_as(places_BT) - 1
    if documents_BT is not None and len(own_I := documents_BT[places_BT]):
        seen_BT = seen_BT & (own_I[image_BT.clamp(min=0)] == documents_BT)
    image_BT = image_BT.masked_fill(~seen_BT, -1)
    if held is None or not held.some:
        features_MQD, keys = features_IQD, {}
    else:
        before_BT = (~seen_BT) & held.there_B[:, None]
        row_B1 = torch.arange(rows, device=image_BT.device)[:, None] + images
        image_BT = torch.where(before_BT, row_B1, image_BT)
        features_MQD = torch.cat([features_IQD, held.features_BQD]) if images else held.features_BQD
        keys = {} if images else held.keys  # the same images: their keys are made once
    if not keep:
        return Media(features_MQD, image_BT, keys), None
    if held is None or images:
        last_B = image_BT[:, -1]
        held = Held(_rows_of(features_MQD, last_B), last_B >= 0, bool((last_B >= 0).any()))
    return Media(features_MQD, image_BT, keys), held


def _rows_of(features_MQD: Tensor, image_B: Tensor) -> Tensor:
    """The image of each row (B, Q, D), zeros where there is none."""
    if not len(features_MQD):
        return features_MQD.new_zeros(len(image_B), *features_MQD.shape[1:])
    return features_MQD[image_B.clamp(min=0)] * (image_B >= 0).to(features_MQD.dtype)[:, None, None]


class GatedCrossAttention(GradientCheckpointingLayer):
    """One layer between those of the decoder.

    Args:
        width: D, of the decoder and of the features.
        num_heads, head_dim: of its attention.
        index: of the decoder's layer that follows.
    """

    def __init__(self, width: int, num_heads: int, head_dim: int, index: int) -> None:
        super().__init__()
        self.num_heads, self.index = num_heads, index
        inner = num_heads * head_dim
        self.norm = nn.LayerNorm(width)
        self.q_proj = linear(width, inner, init_default, bias=False)
        self.kv_proj = linear(width, 2 * inner, init_default, bias=False)
        self.out_proj = linear(inner, width, init_default, bias=False)
        self.attn_gate = nn.Parameter(torch.zeros(1))
        self.ffn_norm = nn.LayerNorm(width)
        self.fc1 = linear(width, 4 * width, init_default, bias=False)
        self.fc2 = linear(4 * width, width, init_default, bias=False)
        self.ffn_gate = nn.Parameter(torch.zeros(1))
        self.start = _start_closed

    def forward(self, hidden_BTD: Tensor, media: Media) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        query_BTC = self.q_proj(self.norm(hidden_BTD))
        if len(media.image_R):
            attended_BTD = self.out_proj(self._attend(query_BTC, media))
            hidden_BTD = hidden_BTD + self.attn_gate.tanh() * attended_BTD
        elif len(media.features_MQD):  # a rank without images: every weight gets its gradient, which is zero
            query = query_BTC[:1, :1].unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            key, value = media.keys_values(self)
            attended = F.scaled_dot_product_attention(query, key[:1], value[:1]).transpose(1, 2).flatten(2)
            hidden_BTD = hidden_BTD + self.attn_gate.tanh() * self.out_proj(attended).sum() * 0.0
        inner = F.gelu(self.fc1(self.ffn_norm(hidden_BTD)))
        return hidden_BTD + self.ffn_gate.tanh() * self.fc2(inner)

    def _attend(self, query_BTC: Tensor, media: Media) -> Tensor:
        """Attend run by run, (B, T, C) in and out; zeros where a token sees no image."""
        key, value = media.keys_values(self)
        query_SC = query_BTC.flatten(0, 1)[media.seeing_S]
        longest = int(media.turn_S.max()) + 1
        query_RLC = query_SC.new_zeros(len(media.image_R), longest, query_SC.shape[-1])
        query_RLC = query_RLC.index_put((media.run_S, media.turn_S), query_SC)
        attended = F.scaled_dot_product_attention(
            query_RLC.unflatten(-1, (self.num_heads, -1)).transpose(1, 2), key[media.image_R], value[media.image_R]
        )
        found_SC = attended.transpose(1, 2).flatten(2)[media.run_S, media.turn_S]
        empty_NC = torch.zeros_like(query_BTC).flatten(0, 1)
        return empty_NC.index_put((media.seeing_S,), found_SC.to(empty_NC.dtype)).view_as(query_BTC)


def _start_closed(layer: GatedCrossAttention) -> None:
    init.zeros_(layer.attn_gate)
    init.zeros_(layer.ffn_gate)
    for norm in (layer.norm, layer.ffn_norm):
        init_norm(norm)


class Coupling:
    """The layers of a model, and what they attend to in this pass; decoders call it before each of their own layers."""

    def __init__(self, layers: nn.ModuleDict, media: Media) -> None:
        self.layers, self.media = layers, media

    def before(self, index: int, hidden_BTD: Tensor) -> Tensor:
        """Return the hidden states as the decoder's layer of this index gets them."""
        name = str(index)
        return self.layers[name](hidden_BTD, self.media) if name in self.layers else hidden_BTD


# The coupling of the forward pass of a transformers decoder that is running in this thread.
_COUPLING: ContextVar[Coupling | None] = ContextVar("coupling", default=None)


@contextmanager
def coupled(coupling: Coupling | None) -> Iterator[None]:
    """Let the hooks of ``couple`` know what to attend to."""
    token = _COUPLING.set(coupling)
    try:
        yield
    finally:
        _COUPLING.reset(token)


def couple(layers: nn.ModuleList, indices: list[int]) -> None:
    """Put cross-attention before these layers of a decoder whose code is not ours."""
    for index in indices:
        layers[index].register_forward_pre_hook(_Before(index), with_kwargs=True)


class _Before:
    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        coupling = _COUPLING.get()
        assert coupling is not None, "a layer with cross-attention runs inside of its decoder"
        if args:
            return (coupling.before(self.index, args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": coupling.before(self.index, kwargs["hidden_states"])}


def held_by(cache: Any) -> Held | None:
    """Return what a cache holds of images.

    Raises:
        ValueError: a cache of a kind that would keep none.
    """
    if cache is not None and not isinstance(cache, DynamicCache):
        raise ValueError(
            f"a {type(cache).__name__} cannot hold the images that cross-attention looks at; use the dynamic cache "
            "(cache_implementation='dynamic', the default)"
        )
    return getattr(cache, "media", None)
