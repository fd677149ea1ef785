"""The loop that writes tokens: greedy search and sampling, one decoding step after the other.

``generate()`` runs it where only tokens are asked for, and with it chat and the samples of a training; the evaluator
runs it behind prompts whose beginnings it has read once. transformers' own loop prepares and unpacks a dictionary of
inputs for every token, and takes the argmax of all logits: more than the attention of a small decoder costs.
Processors, stopping criteria and streamers are transformers' own, called in the same order with the same arguments, so
that the tokens are the same, sampled ones included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.generation import LogitsProcessor

from .decode_step import DecodeStep, ModuleStep
from .screening import KNOWN, Screen, can_screen, screen_of
from .versions import CACHE

# Tokens of all rows after which a screen pays: to make one takes about as long as so many products, to check one one.
MAKE_AFTER, CHECK_AFTER = 16, 1
MOST_ROWS = 16  # beyond, to look at each row's candidates takes as long as the product


class Place(NamedTuple):
    """Where a new token stands: what a step takes beside its embedding."""

    position_ids_B1: Tensor
    attention_mask: Tensor | None
    cache: Cache
    position_in_span_B1: Tensor | None = None

    def next(self) -> Place:
        """The place behind this one."""
        first, second = next_positions(self.position_ids_B1, self.position_in_span_B1)
        mask = self.attention_mask
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        return Place(first, mask, self.cache, second)

    def select(self, rows_N: Tensor) -> Place:
        """The same place of some of the rows, which alone stay in the cache."""
        self.cache.batch_select_indices(rows_N)
        first, mask, _, second = self
        first = first if len(first) == 1 else first[rows_N]  # one row of positions may serve all
        return Place(first, _choose(mask, rows_N), self.cache, _choose(second, rows_N))


def _choose(tensor: Tensor | None, rows_N: Tensor) -> Tensor | None:
    return None if tensor is None else tensor[rows_N]


def next_positions(first_B1: Tensor, second_B1: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Positions of the next token: inside a GLM span (second position above 0) the first stays, the second counts."""
    if second_B1 is None:
        return first_B1 + 1, None
    inside = (second_B1 > 0).long()
    return first_B1 + (1 - inside), second_B1 + inside


class Forbid(LogitsProcessor):
    """Keeps tokens from being written.

    transformers' own processor for this searches the list for each token of the vocabulary, and the screen could not
    tell that it changes no other score; this one costs nothing measurable and leaves the screen on.
    """

    def __init__(self, tokens: Any, device: Any = None) -> None:
        self.tokens_N = torch.tensor(sorted(tokens), dtype=torch.long, device=device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores (B, V) with minus infinity at the forbidden tokens."""
        return scores.index_fill(1, self.tokens_N.to(scores.device), -torch.inf)


class Picker:
    """Chooses each row's next token from the hidden states, (B, D).

    ``by_row``: a row's token depends on this row alone, so that the loop may leave rows out that have ended.
    """

    def __init__(self, head: Any, processors: Any = (), do_sample: bool = False) -> None:
        self.head, self.processors, self.do_sample = head, list(processors), do_sample
        self.by_row = not do_sample and all(type(processor) is Forbid for processor in self.processors)
        self.screens = self.by_row and can_screen(head)
        forbidden = [processor.tokens_N for processor in self.processors] if self.screens else []
        self.never_N = torch.cat(forbidden) if forbidden else None
        self.screen: Screen | None = None
        self.wait = CHECK_AFTER if self.screens and head.weight in KNOWN else MAKE_AFTER
        self.picked = 0

    def __call__(self, tokens_BT: Tensor, hidden_ND: Tensor, rows_N: Tensor) -> Tensor:
        """Return the next tokens, (N,).

        Args:
            tokens_BT: what was read and written so far, all rows.
            hidden_ND: hidden states of the rows ``rows_N``, which are all rows unless ``by_row``.
            rows_N: places of these rows in the batch.
        """
        self.picked += len(hidden_ND)
        if self.screens and self.picked > self.wait and len(hidden_ND) <= MOST_ROWS:
            with torch.inference_mode():
                if self.screen is None:
                    self.screen = screen_of(self.head.weight)
                chosen = self.screen.choose(self.head.weight, hidden_ND, self.never_N)
            if chosen is not None:
                return chosen.clone()  # an ordinary tensor again
            self.wait = 2 * self.picked  # so that a model whose tokens it never tells apart loses little
        return self.from_logits(tokens_BT, self.head(hidden_ND[:, None])[:, 0], rows_N)

    def from_logits(self, tokens_BT: Tensor, logits_NV: Tensor, rows_N: Tensor) -> Tensor:
        """Return the next tokens, (N,), from the logits (N, V)."""
        scores_NV = logits_NV.float()
        for processor in self.processors:
            scores_NV = processor(tokens_BT, scores_NV)
        if self.do_sample:
            return self.draw(scores_NV, rows_N)
        return scores_NV.max(-1).indices  # the first of equals, as argmax, in a third of its time

    def draw(self, scores_NV: Tensor, rows_N: Tensor) -> Tensor:
        """Return tokens (N,) drawn from the softmax of the scores."""
        return torch.multinomial(scores_NV.softmax(-1), num_samples=1).squeeze(1)


class TreeStep:
    """The whole model for one new token a row, where ``DecodeStep`` may not stand for it; returns logits (B, V)."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(
        self,
        embeds_BD: Tensor,
        position_ids_B1: Tensor,
        attention_mask: Tensor | None,
        cache: Cache,
        position_in_span_B1: Tensor | None = None,
    ) -> Tensor:
        """The arguments are those of ``DecodeStep``."""
        return self.model(
            inputs_embeds=embeds_BD[:, None],
            attention_mask=attention_mask,
            position_ids=position_ids_B1,
            past_key_values=cache,
            position_in_span=position_in_span_B1,
            use_cache=True,
        ).logits[:, -1]


def write(
    model: Any,
    step: Callable[..., Tensor],
    picker: Picker,
    tokens_BT: Tensor,
    logits_BV: Tensor,
    place: Place,
    criteria: Any,
    pad: Any,
    streamer: Any = None,
) -> Tensor:
    """Write behind a prompt until every row has ended, as transformers' ``_sample`` does.

    Args:
        model: gives the embeddings.
        step: ``DecodeStep``, or ``TreeStep`` with a picker whose head is the identity.
        picker: chooses the tokens.
        tokens_BT: what ``criteria`` and processors see in front of what is written; (B, 0) if they need nothing.
        logits_BV: the prompt's next-token logits.
        place: of the prompt's last token; its cache holds the prompt, and is used up.
        criteria: transformers' StoppingCriteriaList.
        pad: the token, () or a number, that fills rows which have ended; None where no token ends one.
        streamer: is given every token.

    Returns:
        ``tokens_BT`` and what was written, (B, T + new).
    """
    ends = any(hasattr(criterion, "eos_token_id") for criterion in criteria)
    embed, lean = model.get_input_embeddings(), isinstance(step, DecodeStep)
    rows_N = torch.arange(len(logits_BV), device=logits_BV.device)  # that a step computes
    picked_B = picker.from_logits(tokens_BT, logits_BV, rows_N)
    unfinished_B = torch.ones_like(picked_B, dtype=torch.bool)
    while True:
        if ends:
            picked_B = torch.where(unfinished_B, picked_B, pad)
        tokens_BT = torch.cat([tokens_BT, picked_B[:, None]], dim=1)
        if streamer is not None:
            streamer.put(picked_B)
        unfinished_B = unfinished_B & ~criteria(tokens_BT, None)
        if not unfinished_B.any():
            break
        if ends and picker.by_row and len(rows_N) > 1:
            open_N = unfinished_B[rows_N]
            # to leave rows out is to copy the cache of the others, so a quarter leaves together
            if 4 * int(open_N.sum()) <= 3 * len(rows_N):
                place, rows_N = place.select(open_N.nonzero()[:, 0]), rows_N[open_N]
        place = place.next()
        embeds_ND = embed(picked_B[rows_N][:, None])[:, 0]
        # a tenth of a small step's time is bookkeeping for views, which nobody needs: the cache stays here
        with torch.inference_mode(lean):
            hidden_ND = step(embeds_ND, *place)
        picked_B = picked_B.index_copy(0, rows_N, picker(tokens_BT, hidden_ND, rows_N))
    if streamer is not None:
        streamer.end()
    return tokens_BT


def sample(
    model: Any,
    step: DecodeStep | ModuleStep,
    tokens_BT: Tensor,
    processors: Any,
    criteria: Any,
    generation_config: Any,
    streamer: Any,
    inputs: dict[str, Any],
) -> Tensor:
    """Return prompt and answer, (B, T + new): ``GenerationMixin._sample`` for an empty cache and a 2-D mask."""
    prompt = model.prepare_inputs_for_generation(tokens_BT, is_first_iteration=True, **inputs)
    logits_BV = model(**prompt, return_dict=True).logits[:, -1]
    second, mask = inputs.get("position_in_span"), inputs.get("attention_mask")
    mask = None if mask is None or mask.all() else mask  # a mask of ones stays one
    second_B1 = None if second is None else second[:, -1:]
    place = Place(inputs["position_ids"][:, -1:], mask, inputs[CACHE], second_B1)
    picker = Picker(model.lm_head, processors, generation_config.do_sample)
    pad = generation_config._pad_token_tensor
    return write(model, step, picker, tokens_BT, logits_BV, place, criteria, pad, streamer)
