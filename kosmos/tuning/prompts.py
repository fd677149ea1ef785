"""Virtual tokens in front of every document: prompt tuning, P-tuning and prefix tuning, packed rows included.

What learns is PEFT's own encoder (``PromptEmbedding``, ``PromptEncoder``, ``PrefixEncoder``). PEFT puts its output in
front of a *row*, which holds several documents here. So p slots are put in front of every document instead, before the
decoder, and taken out behind it::

    documents  0 0 0 1 1 -1      with p = 2:   v v 0 0 0 v v 1 1 -1
    positions  0 1 2 0 1  0                    0 1 2 3 4 0 1 2 3  2

Every kernel and the mask rule of masks.py then serves as it is. A prompt is the input of its slots. A prefix
replaces the keys and values of its slots in each layer, behind the rotation: keys that take no part in it, as in PEFT,
where they lie in the cache (under xPos and RoPE the score of a prefix key changes with the position of the query). No
other output reads what the layers compute at those slots.

The hooks need only the decoder's call, so prompts serve any decoder; a prefix needs one whose attention calls ``put``.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..positions import count_positions
from ..versions import either


@dataclass(frozen=True)
class Layout:
    """Where slots and tokens of B rows lie after the slots were put in; places count over all rows end to end."""

    rows: int
    length: int
    """T', the tokens of a row, slots included."""
    places_BT: Tensor
    """Of the tokens."""
    slots_N: Tensor
    """Of the slots, document by document, p of each."""

    def put(self, tokens: Tensor, empty: float = 0) -> Tensor:
        """Lay tokens (B, T, …) out with ``empty`` at slots and at the row ends, (B, T', …)."""
        laid = tokens.new_full((self.rows * self.length, *tokens.shape[2:]), empty)
        laid = laid.index_copy(
            0, self.places_BT.flatten(), tokens.expand(self.rows, -1, *tokens.shape[2:]).flatten(0, 1)
        )
        return laid.unflatten(0, (self.rows, self.length))

    def fill(self, laid: Tensor, virtual: Tensor) -> Tensor:
        """Write p virtual tokens (p, …) to the slots of every document of (B, T', …)."""
        times = len(self.slots_N) // len(virtual)
        repeated = virtual.to(laid.dtype).repeat(times, *[1] * (virtual.ndim - 1))
        return laid.flatten(0, 1).index_copy(0, self.slots_N, repeated).view_as(laid)

    def take(self, laid: Tensor) -> Tensor:
        """The tokens (B, T, …) of (B, T', …), without slots."""
        return laid.flatten(0, 1)[self.places_BT]


@dataclass(frozen=True)
class Prefix:
    """Keys and values of a prefix, for the attention of each layer."""

    layout: Layout
    keys_LPHK: Tensor
    values_LPHK: Tensor

    def put(self, key_BTHK: Tensor, value_BTHK: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Replace keys and values at the slots; called behind the rotation and before the cache."""
        return self.layout.fill(key_BTHK, self.keys_LPHK[layer]), self.layout.fill(value_BTHK, self.values_LPHK[layer])


# The layout of the decoder call that is running in this thread.
_LAYOUT: ContextVar[Layout | None] = ContextVar("layout", default=None)


class Prompts(nn.Module):
    """The virtual tokens of a decoder, by name, of which one set at most is active."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        text = decoder.config
        self.heads, self.layers, self.absolute = (
            text.num_attention_heads,
            text.num_hidden_layers,
            getattr(text, "position_type", None) == "sinusoidal",
        )
        self.encoders = nn.ModuleDict()
        self.sizes: dict[str, tuple[int, bool]] = {}  # name → tokens, whether it is a prefix
        self.active: str | None = None

    def add(self, name: str, encoder: nn.Module, tokens: int, prefix: bool) -> None:
        """Take in an encoder that maps indices (1, p) to (1, p, D), or of a prefix to (1, p, 2 L D); activate it."""
        self.encoders[name], self.sizes[name], self.active = encoder, (tokens, prefix), name

    def virtual(self) -> Tensor:
        """What the active encoder makes, (p, D) or (p, 2 L D)."""
        assert self.active is not None
        encoder = self.encoders[self.active]
        indices = torch.arange(self.sizes[self.active][0], device=next(encoder.parameters()).device)
        return encoder(indices[None])[0]

    def before(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Forward pre-hook of the decoder: put the slots in where rows begin, count them where rows go on.

        Raises:
            ValueError: a 4-D mask, which leaves no place for slots.
        """
        _LAYOUT.set(None)
        if self.active is None:
            return None
        names = ("inputs_embeds", "attention_mask")
        kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
        mask, count = kwargs.get("attention_mask"), self.sizes[self.active][0]
        if mask is not None and mask.ndim != 2:
            raise ValueError(
                f"virtual tokens need a 2-D attention_mask, got one of {mask.ndim} dimensions, "
                "such as a static cache makes; use the default cache"
            )
        if mask is not None:
            kwargs["attention_mask"] = mask = torch.cat([mask.new_ones(len(mask), count), mask], dim=1)
        past = either(kwargs.get("past_key_values"), kwargs.get("cache"))
        if past is not None and past.get_seq_length():
            if kwargs.get("position_ids") is not None:
                kwargs["position_ids"] = self._moved(kwargs["position_ids"], count)
            return (), kwargs
        layout = self._layout(kwargs["inputs_embeds"], kwargs.get("document_ids"), count)
        _LAYOUT.set(layout)
        return (), self._lay_out(layout, kwargs, mask, count)

    def after(self, decoder: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook of the decoder: take the slots out of its hidden states."""
        layout = _LAYOUT.get()
        if layout is None:
            return output
        _LAYOUT.set(None)
        output.last_hidden_state = layout.take(output.last_hidden_state)
        if output.hidden_states is not None:
            output.hidden_states = tuple(layout.take(hidden) for hidden in output.hidden_states)
        return output

    def _layout(self, embeds_BTD: Tensor, documents_BT: Tensor | None, count: int) -> Layout:
        """Slots in front of every document, or of every row where no documents are given."""
        rows, length = embeds_BTD.shape[:2]
        device = embeds_BTD.device
        starts_BT = torch.zeros(rows, length, dtype=torch.bool, device=device)
        starts_BT[:, 0] = True
        if documents_BT is not None:
            starts_BT[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
            starts_BT &= documents_BT >= 0
        wide = length + count * int(starts_BT.sum(1).max())
        if device.type == "cuda" and documents_BT is not None:
            wide = -(-wide // 128) * 128  # few shapes: flex_attention is compiled for each
        row = torch.arange(rows, device=device)[:, None] * wide
        places_BT = row + torch.arange(length, device=device) + count * starts_BT.cumsum(1)
        first_N = places_BT[starts_BT] - count
        slots_N = (first_N[:, None] + torch.arange(count, device=device)).flatten()
        return Layout(rows, wide, places_BT, slots_N)

    def _lay_out(self, layout: Layout, kwargs: dict[str, Any], mask: Tensor | None, count: int) -> dict[str, Any]:
        """The decoder's arguments with slots: inputs, documents, blocks, both positions."""
        embeds_BTD, virtual = layout.put(kwargs["inputs_embeds"]), self.virtual()
        assert self.active is not None
        if self.sizes[self.active][1]:
            # as PEFT lays a prefix out: layer 0's keys, its values, layer 1's keys, …
            halves = virtual.to(embeds_BTD.dtype).unflatten(-1, (self.layers, 2, self.heads, -1)).permute(1, 2, 0, 3, 4)
            kwargs["prefix"] = Prefix(layout, halves[:, 0], halves[:, 1])
        else:
            embeds_BTD = layout.fill(embeds_BTD, virtual)
        kwargs["inputs_embeds"] = embeds_BTD
        if (documents_BT := kwargs.get("document_ids")) is not None:
            laid = layout.put(documents_BT, -1)
            owners_N = laid.flatten()[layout.slots_N.view(-1, count)[:, -1] + 1]  # of the token behind the slots
            kwargs["document_ids"] = (
                laid.flatten().index_copy(0, layout.slots_N, owners_N.repeat_interleave(count)).view_as(laid)
            )
        if kwargs.get("block_ids") is not None:
            kwargs["block_ids"] = layout.put(kwargs["block_ids"], -1)
        if kwargs.get("position_in_span") is not None:
            kwargs["position_in_span"] = layout.put(kwargs["position_in_span"])
        positions = kwargs.get("position_ids")
        if positions is None and mask is not None:
            counted = count_positions(mask)
            kwargs["position_ids"] = counted if self.absolute else counted.clamp(min=0)
        elif positions is not None:
            laid = layout.put(self._moved(positions, count))
            kwargs["position_ids"] = layout.fill(laid, torch.arange(count, device=laid.device))
        return kwargs

    def _moved(self, position_ids_BT: Tensor, count: int) -> Tensor:
        """Positions behind the slots; -1, the position without a sinusoid, stays."""
        moved = position_ids_BT + count
        return moved.masked_fill(position_ids_BT < 0, -1) if self.absolute else moved


def prompts_of(decoder: Any) -> Prompts:
    """The decoder's virtual tokens; the first call hooks them in."""
    if not isinstance(getattr(decoder, "prompts", None), Prompts):
        decoder.prompts = Prompts(decoder)
        decoder.register_forward_pre_hook(decoder.prompts.before, with_kwargs=True)
        decoder.register_forward_hook(decoder.prompts.after)
    return decoder.prompts
