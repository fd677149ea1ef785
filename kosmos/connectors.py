"""Connectors: an encoder's features to the decoder's embedding space.

| kind | structure | used by |
| --- | --- | --- |
| ``linear`` | Linear(in→d) | MetaLM, language only |
| ``mlp`` | Linear(in→in), gelu, Linear(in→d) | KOSMOS-2's code, ``complex`` |
| ``ffn3`` | three linear layers with gelu between | MetaLM, vision-language |
| ``xconnector`` | Linear(in→d), one attention of learned queries over features and queries | KOSMOS-2 |
| ``resampler`` | Perceiver layers at the encoder's width, norm, Linear(in→d) | Flamingo, cited by KOSMOS-1 |

A video's frames (``num_frames``) get a learned embedding of their time each before one of the last two reads all of
them (Flamingo, section 3.1.1).

Differs from the papers: KOSMOS-1 says "Resampler [Flamingo]" while its authors' code has the single cross-attention;
both are here. Flamingo's media-time embeddings are left out: images are told apart by their place in the text. The
resampler's output is multiplied by d^-½: its last norm makes unit variance, while a token embedding has variance 1/d
before the decoder multiplies both by √d; Flamingo's cross-attention has no such factor.
The embeddings of time begin as zeros, Flamingo's at random: a video of one frame begins as the image that it is.
Text spans of different lengths come to the last two padded, with a mask.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN

from .encoder_configs import KosmosConnectorConfig
from .initialization import init_default, init_xavier, linear


class FeedForwardConnector(nn.Module):
    """``linear``, ``mlp`` and ``ffn3``: one output a feature, (…, C) to (…, D)."""

    def __init__(self, config: KosmosConnectorConfig, width_in: int, width_out: int, num_heads: int) -> None:
        super().__init__()
        widths = {
            "linear": [width_in, width_out],
            "mlp": [width_in, width_in, width_out],
            "ffn3": [width_in, width_out, width_out, width_out],
        }[config.kind]
        self.activation = ACT2FN[config.hidden_act]
        self.layers = nn.ModuleList([linear(a, b, init_default) for a, b in pairwise(widths)])

    def forward(self, features: Tensor) -> Tensor:
        """(…, C) to (…, D)."""
        for index, layer in enumerate(self.layers):
            features = layer(features if index == 0 else self.activation(features))
        return features


class QueryAttention(nn.Module):
    """Multi-head attention of KOSMOS-2's connector: biases, no norm, separate queries and keys."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"connector_config.num_heads {num_heads} does not divide the connector's width {width}")
        self.num_heads = num_heads
        inner, outer = partial(init_xavier, gain=2**-0.5), partial(init_xavier, zero_bias=True)  # fairseq's
        self.q_proj = linear(width, width, inner)
        self.k_proj = linear(width, width, inner)
        self.v_proj = linear(width, width, inner)
        self.out_proj = linear(width, width, outer)

    def forward(self, query_IQD: Tensor, memory_IPD: Tensor, mask_I11P: Tensor | None = None) -> Tensor:
        """(I, Q, D) and (I, P, D) to (I, Q, D); of the memory only what the mask marks is seen."""
        query = _heads(self.q_proj(query_IQD), self.num_heads)
        key, value = (_heads(projection(memory_IPD), self.num_heads) for projection in (self.k_proj, self.v_proj))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask_I11P)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class XConnector(nn.Module):
    """KOSMOS-2's connector: learned queries attend once to the features and to themselves."""

    def __init__(self, config: KosmosConnectorConfig, width_in: int, width_out: int, num_heads: int) -> None:
        super().__init__()
        self.dense = linear(width_in, width_out, init_default)
        self.latent_query = nn.Parameter(torch.randn(config.num_queries, width_out))
        self.start = _start_latents
        self.x_attn = QueryAttention(width_out, config.num_heads or num_heads)

    def forward(self, features_IPC: Tensor, valid_IP: Tensor | None = None) -> Tensor:
        """(I, P, C), of which ``valid_IP`` (default: all) count, to (I, Q, D)."""
        latents = self.latent_query.expand(len(features_IPC), -1, -1)
        memory = torch.cat([self.dense(features_IPC), latents], dim=1)
        return self.x_attn(latents, memory, _seen(valid_IP, latents))


class PerceiverLayer(nn.Module):
    """Flamingo's layer: normed latents attend to features and latents, then a feed-forward; both with residuals."""

    def __init__(self, width: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        inner = num_heads * head_dim
        self.norm_media = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.to_q = linear(width, inner, init_default, bias=False)
        self.to_kv = linear(width, 2 * inner, init_default, bias=False)
        self.to_out = linear(inner, width, init_default, bias=False)
        self.norm_ffn = nn.LayerNorm(width)
        self.fc1 = linear(width, 4 * width, init_default, bias=False)
        self.fc2 = linear(4 * width, width, init_default, bias=False)

    def forward(self, features_IPC: Tensor, latents_IQC: Tensor, mask_I11P: Tensor | None = None) -> Tensor:
        """Return the new latents, (I, Q, C); the mask says which features and latents are seen."""
        latents = self.norm_latents(latents_IQC)
        memory = torch.cat([self.norm_media(features_IPC), latents], dim=1)
        key, value = (_heads(half, self.num_heads) for half in self.to_kv(memory).chunk(2, dim=-1))
        query = _heads(self.to_q(latents), self.num_heads)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask_I11P)
        latents_IQC = latents_IQC + self.to_out(attended.transpose(1, 2).flatten(2))
        return latents_IQC + self.fc2(F.gelu(self.fc1(self.norm_ffn(latents_IQC))))


class Resampler(nn.Module):
    """Flamingo's Perceiver resampler with a projection to the decoder's width."""

    def __init__(self, config: KosmosConnectorConfig, width_in: int, width_out: int, num_heads: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(config.num_queries, width_in))
        self.start = _start_latents
        heads = config.num_heads or 8
        self.layers = nn.ModuleList([PerceiverLayer(width_in, heads, config.head_dim) for _ in range(config.depth)])
        self.norm = nn.LayerNorm(width_in)
        self.dense = linear(width_in, width_out, init_default)
        self.factor = width_out**-0.5

    def forward(self, features_IPC: Tensor, valid_IP: Tensor | None = None) -> Tensor:
        """(I, P, C), of which ``valid_IP`` (default: all) count, to (I, Q, D)."""
        latents = self.latents.expand(len(features_IPC), -1, -1)
        mask_I11P = _seen(valid_IP, latents)
        for layer in self.layers:
            latents = layer(features_IPC, latents, mask_I11P)
        # by d^-½: see the module's docstring
        return self.dense(self.norm(latents)) * self.factor


class FrameConnector(nn.Module):
    """The frames of a video: the embedding of its time is added to each, then one connector reads all."""

    def __init__(self, config: KosmosConnectorConfig, width_in: int, width_out: int, num_heads: int) -> None:
        super().__init__()
        self.times = nn.Parameter(torch.zeros(config.num_frames or 1, width_in))
        self.start = _start_times
        self.reader = CONNECTORS[config.kind](config, width_in, width_out, num_heads)

    def forward(self, features_VFPC: Tensor, valid_VF: Tensor | None = None) -> Tensor:
        """Frames of videos (V, F, P, C), of which ``valid_VF`` (default: all) count, to (V, Q, D).

        Raises:
            ValueError: more frames than embeddings of time.
        """
        frames, most = features_VFPC.shape[1], len(self.times)
        if frames > most:
            raise ValueError(f"a video of {frames} frames, but video_connector_config.num_frames is {most}")
        timed = features_VFPC + self.times[:frames, None].to(features_VFPC.dtype)
        valid_VP = None if valid_VF is None else valid_VF.repeat_interleave(timed.shape[2], dim=1)
        return self.reader(timed.flatten(1, 2), valid_VP)


CONNECTORS: dict[str, Callable[..., nn.Module]] = {
    "linear": FeedForwardConnector,
    "mlp": FeedForwardConnector,
    "ffn3": FeedForwardConnector,
    "xconnector": XConnector,
    "resampler": Resampler,
}


def build_connector(config: KosmosConnectorConfig, width_in: int, width_out: int, num_heads: int) -> nn.Module:
    """Return the connector ``config.kind`` from encoder width to decoder width; ``num_heads`` are the decoder's."""
    kind = CONNECTORS[config.kind] if config.num_frames is None else FrameConnector
    return kind(config, width_in, width_out, num_heads)


def _start_times(module: Any) -> None:
    init.zeros_(module.times)


def _start_latents(module: nn.Module) -> None:
    """Learned queries start as N(0, 1), in KOSMOS-2 as in Flamingo."""
    for parameter in module.parameters(recurse=False):
        init.normal_(parameter)


def _seen(valid_IP: Tensor | None, latents_IQD: Tensor) -> Tensor | None:
    """Return the mask (I, 1, 1, P + Q) of features and latents: padding is not seen, latents always are."""
    if valid_IP is None:
        return None
    return F.pad(valid_IP, (0, latents_IQD.shape[1]), value=True)[:, None, None]


def _heads(states: Tensor, num_heads: int) -> Tensor:
    return states.unflatten(-1, (num_heads, -1)).transpose(1, 2)
