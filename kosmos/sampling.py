"""Greedy search and sampling without detours: the loop around ``DecodeStep`` when only tokens are asked for.

transformers' loop prepares and unpacks a dictionary of inputs for every token, and takes the argmax of all logits: more
than the attention of a small decoder costs. Processors, stopping criteria and streamers are transformers' own, called
in the same order with the same arguments, so that the tokens are the same, sampled ones included.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from .decode import DecodeStep
from .screening import KNOWN, Screen, can_screen, screen_of

# Tokens of all rows after which a screen pays: to make one takes about as long as so many products, to check one one.
MAKE_AFTER, CHECK_AFTER = 16, 1


class Place(NamedTuple):
    """Where a new token stands: what ``DecodeStep`` takes beside its embedding."""

    position_ids_B1: Tensor
    attention_mask: Tensor | None
    cache: Cache
    position_in_span_B1: Tensor | None

    def next(self) -> Place:
        """The place behind this one."""
        first, second = next_positions(self.position_ids_B1, self.position_in_span_B1)
        mask = self.attention_mask
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        return Place(first, mask, self.cache, second)


def next_positions(first_B1: Tensor, second_B1: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Positions of the next token: inside a GLM span (second position above 0) the first stays, the second counts."""
    if second_B1 is None:
        return first_B1 + 1, None
    inside = (second_B1 > 0).long()
    return first_B1 + (1 - inside), second_B1 + inside


class Picker:
    """Chooses each row's next token from the hidden states, (B, D)."""

    def __init__(self, head: nn.Linear, processors: Any, do_sample: bool) -> None:
        self.head, self.processors, self.do_sample = head, processors, do_sample
        self.screens = not do_sample and not len(processors) and can_screen(head)
        self.screen: Screen | None = None
        self.wait = CHECK_AFTER if self.screens and head.weight in KNOWN else MAKE_AFTER
        self.picked = 0

    def __call__(self, tokens_BT: Tensor, hidden_BD: Tensor) -> Tensor:
        """Return the next tokens, (B,)."""
        self.picked += len(hidden_BD)
        if self.screens and self.picked > self.wait:
            with torch.inference_mode():
                if self.screen is None:
                    self.screen = screen_of(self.head.weight)
                chosen = self.screen.choose(self.head.weight, hidden_BD)
            if chosen is not None:
                return chosen.clone()  # an ordinary tensor again
            self.wait = 2 * self.picked  # so that a model whose tokens it never tells apart loses little
        return self.from_logits(tokens_BT, self.head(hidden_BD[:, None])[:, 0])

    def from_logits(self, tokens_BT: Tensor, logits_BV: Tensor) -> Tensor:
        """Return the next tokens, (B,), from the logits (B, V)."""
        scores_BV = self.processors(tokens_BT, logits_BV.float())
        if self.do_sample:
            return torch.multinomial(scores_BV.softmax(-1), num_samples=1).squeeze(1)
        return scores_BV.max(-1).indices  # the first of equals, as argmax, in a third of its time


def sample(
    model: Any,
    step: DecodeStep,
    tokens_BT: Tensor,
    processors: Any,
    criteria: Any,
    generation_config: Any,
    streamer: Any,
    inputs: dict[str, Any],
) -> Tensor:
    """Return prompt and answer, (B, T + new): ``GenerationMixin._sample`` for an empty cache and a 2-D mask."""
    prompt = model.prepare_inputs_for_generation(tokens_BT, is_first_iteration=True, **inputs)
    picker = Picker(model.lm_head, processors, generation_config.do_sample)
    picked_B = picker.from_logits(tokens_BT, model(**prompt, return_dict=True).logits[:, -1])
    second = inputs.get("position_in_span")
    second_B1 = None if second is None else second[:, -1:]
    mask = inputs.get("attention_mask")
    mask = None if mask is None or mask.all() else mask  # a mask of ones stays one
    place = Place(inputs["position_ids"][:, -1:], mask, inputs["past_key_values"], second_B1)
    ends = any(hasattr(criterion, "eos_token_id") for criterion in criteria)
    unfinished_B = torch.ones_like(picked_B)
    while True:
        if ends:
            picked_B = picked_B * unfinished_B + generation_config._pad_token_tensor * (1 - unfinished_B)
        tokens_BT = torch.cat([tokens_BT, picked_B[:, None]], dim=1)
        if streamer is not None:
            streamer.put(picked_B)
        unfinished_B = unfinished_B & ~criteria(tokens_BT, None)
        if not unfinished_B.any():
            break
        place = place.next()
        embeds_BD = step.decoder.embed_tokens(picked_B[:, None])[:, 0]
        with torch.inference_mode():  # a tenth of a small step's time is bookkeeping for views; the cache stays here
            hidden_BD = step(embeds_BD, *place)
        picked_B = picker(tokens_BT, hidden_BD)
    if streamer is not None:
        streamer.end()
    return tokens_BT
