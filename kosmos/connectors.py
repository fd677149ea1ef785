"""Connectors: an encoder's features to the decoder's embedding space.

| kind | structure | used by |
| --- | --- | --- |
| ``linear`` | Linear(in→d) | MetaLM, language only |
| ``mlp`` | Linear(in→in), gelu, Linear(in→d) | KOSMOS-2's code, ``complex`` |
| ``ffn3`` | three linear layers with gelu between | MetaLM, vision-language |
| ``xconnector`` | Linear(in→d), one attention of learned queries over features and queries | KOSMOS-2 |
| ``resampler`` | Perceiver layers at the encoder's width, norm, Linear(in→d) | Flamingo, cited by KOSMOS-1 |

Differs from the papers: KOSMOS-1 says "Resampler [Flamingo]" while its authors' code has the single cross-attention;
both are here. Flamingo's media-time embeddings are left out: images are told apart by their place in the text.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN

from .configuration_kosmos import KosmosConnectorConfig
from .initialization import init_default


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
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in pairwise(widths)])

    def forward(self, features: Tensor) -> Tensor:
        """(…, C) to (…, D)."""
        for index, layer in enumerate(self.layers):
            features = layer(features if index == 0 else self.activation(features))
        return features

    def reset_parameters_kept(self) -> None:
        """Initialise, keeping what a checkpoint filled."""
        for layer in self.layers:
            init_default(layer)


class QueryAttention(nn.Module):
    """Multi-head attention of KOSMOS-2's connector: biases, no norm, separate queries and keys."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"connector_config.num_heads {num_heads} does not divide the connector's width {width}")
        self.num_heads = num_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, query_IQD: Tensor, memory_IPD: Tensor) -> Tensor:
        """(I, Q, D) and (I, P, D) to (I, Q, D)."""
        query = _heads(self.q_proj(query_IQD), self.num_heads)
        key, value = (_heads(projection(memory_IPD), self.num_heads) for projection in (self.k_proj, self.v_proj))
        return self.out_proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class XConnector(nn.Module):
    """KOSMOS-2's connector: learned queries attend once to the features and to themselves."""

    def __init__(self, config: KosmosConnectorConfig, width_in: int, width_out: int, num_heads: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width_in, width_out)
        self.latent_query = nn.Parameter(torch.randn(config.num_queries, width_out))
        self.x_attn = QueryAttention(width_out, config.num_heads or num_heads)

    def forward(self, features_IPC: Tensor) -> Tensor:
        """(I, P, C) to (I, Q, D)."""
        latents = self.latent_query.expand(len(features_IPC), -1, -1)
        return self.x_attn(latents, torch.cat([self.dense(features_IPC), latents], dim=1))

    def reset_parameters_kept(self) -> None:
        """fairseq's initialisation: Xavier with gain 1/sqrt(2) on q, k, v; Xavier and zero bias on the output."""
        init_default(self.dense)
        init.normal_(self.latent_query)
        for projection in (self.x_attn.q_proj, self.x_attn.k_proj, self.x_attn.v_proj):
            init_default(projection)
            init.xavier_uniform_(projection.weight, gain=2**-0.5)
        init.xavier_uniform_(self.x_attn.out_proj.weight)
        init.zeros_(self.x_attn.out_proj.bias)


class PerceiverLayer(nn.Module):
    """Flamingo's layer: normed latents attend to features and latents, then a feed-forward; both with residuals."""

    def __init__(self, width: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        inner = num_heads * head_dim
        self.norm_media = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)
        self.norm_ffn = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width, bias=False)
        self.fc2 = nn.Linear(4 * width, width, bias=False)

    def forward(self, features_IPC: Tensor, latents_IQC: Tensor) -> Tensor:
        """Return the new latents, (I, Q, C)."""
        latents = self.norm_latents(latents_IQC)
        memory = torch.cat([self.norm_media(features_IPC), latents], dim=1)
        key, value = (_heads(half, self.num_heads) for half in self.to_kv(memory).chunk(2, dim=-1))
        attended = F.scaled_dot_product_attention(_heads(self.to_q(latents), self.num_heads), key, value)
        latents_IQC = latents_IQC + self.to_out(attended.transpose(1, 2).flatten(2))
        return latents_IQC + self.fc2(F.gelu(self.fc1(self.norm_ffn(latents_IQC))))

    def reset_parameters_kept(self) -> None:
        """Initialise, keeping what a checkpoint filled."""
        for linear in (self.to_q, self.to_kv, self.to_out, self.fc1, self.fc2):
            init_default(linear)


class Resampler(nn.Module):
    """Flamingo's Perceiver resampler with a projection to the decoder's width."""

    def __init__(self, config: KosmosConnectorConfig, width_in: int, width_out: int, num_heads: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(config.num_queries, width_in))
        heads = config.num_heads or 8
        self.layers = nn.ModuleList([PerceiverLayer(width_in, heads, config.head_dim) for _ in range(config.depth)])
        self.norm = nn.LayerNorm(width_in)
        self.dense = nn.Linear(width_in, width_out)

    def forward(self, features_IPC: Tensor) -> Tensor:
        """(I, P, C) to (I, Q, D)."""
        latents = self.latents.expand(len(features_IPC), -1, -1)
        for layer in self.layers:
            latents = layer(features_IPC, latents)
        # the norm makes unit variance; a token embedding has 1/sqrt(d) before the decoder multiplies both by sqrt(d)
        return self.dense(self.norm(latents)) * self.dense.out_features**-0.5

    def reset_parameters_kept(self) -> None:
        """Initialise, keeping what a checkpoint filled."""
        init.normal_(self.latents)
        init_default(self.dense)


CONNECTORS: dict[str, Callable[..., nn.Module]] = {
    "linear": FeedForwardConnector,
    "mlp": FeedForwardConnector,
    "ffn3": FeedForwardConnector,
    "xconnector": XConnector,
    "resampler": Resampler,
}
QUERYING = ("xconnector", "resampler")


def build_connector(config: KosmosConnectorConfig, width_in: int, width_out: int, num_heads: int) -> nn.Module:
    """Return the connector ``config.kind`` from encoder width to decoder width; ``num_heads`` are the decoder's."""
    return CONNECTORS[config.kind](config, width_in, width_out, num_heads)


def _heads(states: Tensor, num_heads: int) -> Tensor:
    return states.unflatten(-1, (num_heads, -1)).transpose(1, 2)
