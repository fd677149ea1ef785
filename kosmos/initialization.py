"""Initial weights of the decoder: MAGNETO's gain (arXiv 2210.06423, section 3.2) and two relatives.

* ``magneto_paper``: Xavier-uniform weights, zero biases; the weights of FFN, value and output projection times
  γ = sqrt(ln 2L), L layers; queries and keys unscaled.
* ``magneto_torchscale``: what torchscale runs. Its Xavier reset is never called, so weights and biases keep PyTorch's
  U(±1/sqrt(fan_in)), and γ multiplies the biases too.
* ``normal``: N(0, initializer_range), zero biases (GPT-2, Hugging Face's Kosmos-2).

Every projection carries its own ``start`` (see ``linear``): transformers initialises custom models leaf by leaf.
transformers.initialization skips tensors that came from a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn
from transformers import initialization as init

from .configuration_kosmos import KosmosTextConfig


def magneto_gain(num_layers: int) -> float:
    """Return γ = sqrt(ln 2L) of a decoder-only model."""
    return math.sqrt(math.log(2 * num_layers))


def linear(width_in: int, width_out: int, start: Callable[[nn.Linear], None], bias: bool = True) -> nn.Linear:
    """Return a projection that knows how it starts: ``start(module)`` fills it unless a checkpoint did."""
    module = nn.Linear(width_in, width_out, bias=bias)
    module.start = start  # type: ignore[assignment]
    return module


def init_projection(linear: nn.Linear, config: KosmosTextConfig, scaled: bool) -> None:
    """Initialise one projection of the decoder; ``scaled`` for FFN, value and output projections."""
    gain = magneto_gain(config.num_hidden_layers) if scaled else 1.0
    if config.initialization == "magneto_paper":
        init.xavier_uniform_(linear.weight, gain=gain)
        init.zeros_(linear.bias)
    elif config.initialization == "magneto_torchscale":
        bound = gain / math.sqrt(linear.weight.shape[1])
        init.uniform_(linear.weight, -bound, bound)
        init.uniform_(linear.bias, -bound, bound)
    else:
        init.normal_(linear.weight, 0.0, config.initializer_range)
        init.zeros_(linear.bias)


def init_embedding(embedding: nn.Embedding, config: KosmosTextConfig) -> None:
    """Initialise an embedding: N(0, 1/d) (fairseq) or N(0, initializer_range); the padding row is zero."""
    ours = getattr(config, "initialization", "normal") != "normal"  # a decoder of transformers is normal
    std = embedding.embedding_dim**-0.5 if ours else config.initializer_range
    init.normal_(embedding.weight, 0.0, std)
    if embedding.padding_idx is not None and not getattr(embedding.weight, "_is_hf_initialized", False):
        init.zeros_(embedding.weight[embedding.padding_idx])


def init_norm(norm: nn.LayerNorm) -> None:
    """Initialise a LayerNorm to the identity's scale and shift."""
    init.ones_(norm.weight)
    if norm.bias is not None:
        init.zeros_(norm.bias)


def init_xavier(linear: nn.Linear, gain: float = 1.0, zero_bias: bool = False) -> None:
    """Xavier-uniform weights with a gain; the bias zero or PyTorch's default (fairseq's attention has both)."""
    init_default(linear)
    init.xavier_uniform_(linear.weight, gain=gain)
    if zero_bias:
        init.zeros_(linear.bias)


def init_default(linear: nn.Linear) -> None:
    """PyTorch's own default, U(±1/sqrt(fan_in)), written so that loaded tensors are kept."""
    bound = 1 / math.sqrt(linear.weight.shape[1])
    init.uniform_(linear.weight, -bound, bound)
    if linear.bias is not None:
        init.uniform_(linear.bias, -bound, bound)
