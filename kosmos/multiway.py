"""The multiway transformer of BEiT-3 and VLMo: one network that reads an image and a text together.

::

    image ── patches ──┐                  attention over both;
                       ├── class, P, L ── norms and FFN of its own for either kind ── class, P, L states
    text ─── tokens ───┘

As in BEiT-3 (arXiv 2208.10442, figure 2), with the parameter names of torchscale's ``BEiT3``, so that its published
weights load as they are. torchscale gives either kind its own projections in the attention too, against the paper's
figure; ``share_attention`` has one set, as the figure and VLMo (arXiv 2111.02358).

Differs from torchscale: no dropout, and no mask token, as nothing is masked here; text and image come together always.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .encoder_configs import KosmosFusedConfig

FIRST_POSITION = 2  # fairseq counts from 2


class Multiway(nn.Module):
    """Two modules of a kind: ``A`` reads what comes of images, ``B`` of text."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.A, self.B = make(), make()

    def forward(self, states_SNC: Tensor, split: int) -> Tensor:
        """Map the first ``split`` states of each row by ``A``, the rest by ``B``."""
        return torch.cat([self.A(states_SNC[:, :split]), self.B(states_SNC[:, split:])], dim=1)


class Shared(nn.Module):
    """One module for both kinds, as ``Multiway`` is called."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.both = make()

    def forward(self, states_SNC: Tensor, split: int) -> Tensor:
        """Map all states alike."""
        return self.both(states_SNC)


class FeedForward(nn.Module):
    """torchscale's FFN: a norm between the layers (sub-LN)."""

    def __init__(self, config: KosmosFusedConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.ffn_layernorm = nn.LayerNorm(config.intermediate_size, eps=config.layer_norm_eps)

    def forward(self, states: Tensor) -> Tensor:
        """(…, C) to (…, C)."""
        return self.fc2(self.ffn_layernorm(F.gelu(self.fc1(states))))


class Attention(nn.Module):
    """Attention of all states to all, with projections by kind or shared, and a norm before the last (sub-LN)."""

    def __init__(self, config: KosmosFusedConfig) -> None:
        super().__init__()
        self.num_heads, width = config.num_attention_heads, config.hidden_size
        kind = Shared if config.share_attention else Multiway
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (
            kind(lambda: nn.Linear(width, width)) for _ in range(4)
        )  # fmt: skip
        self.inner_attn_ln = kind(lambda: nn.LayerNorm(width, eps=config.layer_norm_eps))

    def forward(self, states_SNC: Tensor, split: int, mask_S11N: Tensor | None) -> Tensor:
        """(S, N, C) to (S, N, C); keys that the mask leaves out are not seen."""
        query, key, value = (
            projection(states_SNC, split).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask_S11N)
        return self.out_proj(self.inner_attn_ln(attended.transpose(1, 2).flatten(2), split), split)


class Layer(nn.Module):
    """A pre-norm block."""

    def __init__(self, config: KosmosFusedConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.self_attn_layer_norm = Multiway(lambda: nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps))
        self.ffn = Multiway(lambda: FeedForward(config))
        self.final_layer_norm = Multiway(lambda: nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps))

    def forward(self, states_SNC: Tensor, split: int, mask_S11N: Tensor | None) -> Tensor:
        """(S, N, C) to (S, N, C)."""
        normed = self.self_attn_layer_norm(states_SNC, split)
        states_SNC = states_SNC + self.self_attn(normed, split, mask_S11N)
        return states_SNC + self.ffn(self.final_layer_norm(states_SNC, split), split)


class Patches(nn.Module):
    """Patches of an image behind a learned class token."""

    def __init__(self, config: KosmosFusedConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.hidden_size, config.patch_size, config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))

    def forward(self, pixels_S3HW: Tensor) -> Tensor:
        """(S, 3, H, H) to (S, 1 + P, C)."""
        patches = self.proj(pixels_S3HW).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)


class Blocks(nn.Module):
    """Positions, blocks and the last norm."""

    def __init__(self, config: KosmosFusedConfig) -> None:
        super().__init__()
        width = config.hidden_size
        sizes = iter((config.num_patches + 1 + FIRST_POSITION, config.max_source_positions))
        self.embed_positions = Multiway(lambda: nn.Embedding(next(sizes), width))
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])
        self.layer_norm = Multiway(lambda: nn.LayerNorm(width, eps=config.layer_norm_eps))

    def forward(self, states_SNC: Tensor, split: int, valid_SN: Tensor | None) -> Tensor:
        """(S, N, C), of which the first ``split`` come of an image, to (S, N, C)."""
        counts = (split, states_SNC.shape[1] - split)
        places = (torch.arange(count, device=states_SNC.device) + FIRST_POSITION for count in counts)
        tables = (self.embed_positions.A, self.embed_positions.B)
        states_SNC = states_SNC + torch.cat([table(place) for table, place in zip(tables, places, strict=True)])
        mask_S11N = None
        if valid_SN is not None:
            states_SNC, mask_S11N = states_SNC * valid_SN[..., None], valid_SN[:, None, None]  # as torchscale does
        for layer in self.layers:
            states_SNC = layer(states_SNC, split, mask_S11N)
        return self.layer_norm(states_SNC, split)


class MultiwayTransformer(nn.Module):
    """BEiT-3's encoder, with torchscale's names."""

    def __init__(self, config: KosmosFusedConfig) -> None:
        super().__init__()
        self.text_embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.vision_embed = Patches(config)
        self.encoder = Blocks(config)

    def forward(self, pixels_S3HW: Tensor, ids_SL: Tensor, valid_SL: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Images (S, 3, H, H) and texts (S, L), of which ``valid_SL`` count, to states (S, N, C) and their mask (S, N).

        N is 1 + P + L: class token, patches, text.
        """
        seen_SPC = self.vision_embed(pixels_S3HW)
        states_SNC = torch.cat([seen_SPC, self.text_embed(ids_SL)], dim=1)
        valid_SN = None if valid_SL is None else F.pad(valid_SL, (seen_SPC.shape[1], 0), value=True)
        return self.encoder(states_SNC, seen_SPC.shape[1], valid_SN), valid_SN
