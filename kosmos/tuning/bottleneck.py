"""Adapters and AdapterFusion, hooked into the decoder's blocks: no library has them for transformers 5.

    Adapter (Houlsby et al., arXiv 1902.00751, section 2.1)      a(h) = h + up(act(down(h)))
        houlsby: h is what attention and FFN put out, before their skip connections
        pfeiffer (arXiv 2005.00247, figure 5): h is the block's output, behind the skip connection of the FFN
    AdapterFusion (arXiv 2005.00247, section 4.2)                o(h) = h + Σ_n softmax_n(hQ · u_n K) u_n V
        of the adapters' u_n = up_n(act(down_n(h)))

``up`` begins at zero, so a new adapter changes nothing. V begins at the identity with noise of 1e-6, Q and K at random:
a fusion of equal adapters begins as that adapter, and one of others near their mean.

Differs from the paper: V is I + ΔV with ΔV learnt, so that AdamW's decay of ΔV does what the paper's squared distance
of V from I in the loss does. u_n is the adapter without its skip connection, as in the authors' code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

# Placement → places in a block; "" is the block's own output.
PLACES: dict[str, tuple[str, ...]] = {"houlsby": ("attention", "ffn"), "pfeiffer": ("block",)}


class Bottleneck(nn.Module):
    """One adapter at one place."""

    def __init__(self, width: int, size: int, activation: str) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, size), nn.Linear(size, width)
        self.activation = ACT2FN[activation]
        nn.init.normal_(self.down.weight, std=0.02)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """What the adapter adds to its input, (B, T, D)."""
        return self.up(self.activation(self.down(hidden_BTD)))


class Fusion(nn.Module):
    """Attention of one place over what its adapters add."""

    def __init__(self, width: int, names: list[str]) -> None:
        super().__init__()
        self.names = names
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value_change = nn.Linear(width, width, bias=False)
        for projection, spread in ((self.query, 0.02), (self.key, 0.02), (self.value_change, 1e-6)):
            nn.init.normal_(projection.weight, std=spread)
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)

    def forward(self, hidden_BTD: Tensor, added_NBTD: Tensor) -> Tensor:
        """What the fusion adds, (B, T, D), of what N adapters would add."""
        scores_NBT = (self.query(hidden_BTD) * self.key(added_NBTD)).sum(-1)
        values_NBTD = added_NBTD + self.value_change(added_NBTD)
        return (scores_NBT.softmax(0)[..., None] * values_NBTD).sum(0)


class AdapterPlace(nn.Module):
    """The adapters and fusions of one place in one block, by name, of which one at most is active."""

    def __init__(self) -> None:
        super().__init__()
        self.adapters, self.fusions = nn.ModuleDict(), nn.ModuleDict()
        self.active: str | None = None

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        if self.active is not None and self.active in self.adapters:
            return hidden_BTD + self.adapters[self.active](hidden_BTD)
        if self.active is not None and self.active in self.fusions:
            fusion: Any = self.fusions[self.active]
            added_NBTD = torch.stack([self.adapters[name](hidden_BTD) for name in fusion.names])
            return hidden_BTD + fusion(hidden_BTD, added_NBTD)
        return hidden_BTD

    def hook(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook: an attention puts out its states and its weights."""
        if self.active is None:
            return output
        return (self(output[0]), *output[1:]) if isinstance(output, tuple) else self(output)


def places_of(block: Any, placement: str) -> dict[str, AdapterPlace]:
    """The places of one block; the first call hooks them in.

    Raises:
        ValueError: a block whose attention or FFN has another name.
    """
    if not hasattr(block, "adapter_places"):
        block.adapter_places = nn.ModuleDict()
    parts = {"attention": ("self_attn", "attention", "attn"), "ffn": ("ffn", "mlp", "feed_forward"), "block": ("",)}
    found: dict[str, AdapterPlace] = {}
    for place in PLACES[placement]:
        if place not in block.adapter_places:
            name = next((name for name in parts[place] if not name or hasattr(block, name)), None)
            if name is None:
                raise ValueError(f"{type(block).__name__} has no {' or '.join(parts[place])} to put an adapter behind")
            block.adapter_places[place] = made = AdapterPlace()
            (getattr(block, name) if name else block).register_forward_hook(made.hook)
        found[place] = block.adapter_places[place]
    return found


def add_adapter(
    blocks: Any, name: str, placement: str, width: int, reduction: float, activation: str
) -> list[nn.Module]:
    """Put a new adapter into every block; return what was added.

    Raises:
        ValueError: an unknown activation, or a bottleneck below 1.
    """
    if activation not in ACT2FN:
        raise ValueError(f"tuning.activation={activation!r}: choose one of {', '.join(sorted(ACT2FN))}")
    size = int(width / reduction)
    if size < 1:
        raise ValueError(
            f"tuning.reduction={reduction:g} leaves nothing of the decoder's width {width}; at most {width}"
        )
    added: list[nn.Module] = []
    for block in blocks:
        for place in places_of(block, placement).values():
            place.adapters[name] = Bottleneck(width, size, activation)
            added.append(place.adapters[name])
    return added


def add_fusion(blocks: Any, name: str, placement: str, width: int, names: list[str]) -> list[nn.Module]:
    """Put a new fusion of adapters that are there into every block; return what was added."""
    added: list[nn.Module] = []
    for block in blocks:
        for place in places_of(block, placement).values():
            place.fusions[name] = Fusion(width, names)
            added.append(place.fusions[name])
    return added
