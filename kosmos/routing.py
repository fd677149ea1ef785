"""Attention routing: persona, context and what is written are attended to apart (Zheng et al. 2019, arXiv 1911.04700).

    O = α · A(q, persona) + (1 - α) · A(q, context) + A(q, context) + A(q, written)

A is the layer's own attention, softmax over one set of keys; all three share its projections, as in the paper. α is
predicted from the context by a small classifier, with a loss of its own, or is set by hand.

::

    ids     <s> <entity_slot> <entity_slot> Question: where? Answer: in   Rome
    set      ·    persona       persona      context …        written …
    labels                                                    in      Rome </s>

Written is a run of outputs that have a label, so the token that predicts the first word belongs to it; in a prompt
without labels that is the last one. Runs before it are context, and so is a persona that does not begin its document:
that of the other speaker. The ``<s>`` before a persona is in no set.

Differs from the paper: one decoder reads all, so the context is read by its own layers, without the persona where they
are routed; an empty set adds nothing. The classifier reads the states that enter the first routed layer, and its logit
is the mean over the context of what it says of each token (the paper has an MLP over an encoder's output).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache

from .attention import AttentionPlan, attend, documents_of, refuse_dropout
from .configuration_kosmos import KosmosTextConfig
from .initialization import init_default, linear
from .loss import IGNORE
from .masks import interval_mask
from .route_sets import HeldRoutes, dense_mask, find_marks, find_sets, key_runs


class Asked(NamedTuple):
    """What a pass is told of its tokens.

    Attributes:
        persona_BT: True at the places of entities and text spans; None: there are none.
        writing_BT: True where the output is written by the speaker; None: see ``_writing``.
        alpha: a number, or one for each row (B,); None: predicted.
    """

    persona_BT: Tensor | None = None
    writing_BT: Tensor | None = None
    alpha: Tensor | float | None = None


class WeightPredictor(nn.Module):
    """The classifier that says of each token of a context whether the answer will be about the persona."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = max(8, width // 4)
        self.norm = nn.LayerNorm(width)
        self.dense = linear(width, inner, init_default)
        self.out = linear(inner, 1, init_default)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """(B, T, D) to votes (B, T), fp32; ``out.bias`` is the logit without any context, and is not among them."""
        inner = F.gelu(self.dense(self.norm(hidden_BTD)))
        return (inner @ self.out.weight[0]).float()


@dataclass(frozen=True)
class Routes:
    """How the routed layers of one pass attend.

    Attributes:
        plans: one for each set.
        shares: what each of the three is multiplied with, (B, T, 1, 1).
        alpha_BT: α, fp32; of queries that write nothing it means nothing.
        logit_BT: its logit where it was predicted.
    """

    plans: list[AttentionPlan]
    shares: list[Tensor]
    alpha_BT: Tensor
    logit_BT: Tensor | None

    def attend(
        self, query_BTHK: Tensor, key_BTHK: Tensor, value_BTHK: Tensor, scaling: float, dropout: float
    ) -> Tensor:
        """Attend to each set and return the weighted sum, (B, T, H, K)."""
        parts = [
            share * attend(plan, query_BTHK, key_BTHK, value_BTHK, scaling, dropout)
            for plan, share in zip(self.plans, self.shares, strict=True)
        ]
        return parts[0] + parts[1] + parts[2]


class Router:
    """The routes of one pass, from what is known before its layers; :meth:`weigh` adds α.

    Args:
        config: of the decoder.
        hidden_BTD: tells shape and device.
        attention_mask: (B, P + T) with 0 on padding.
        cache: what was read before; holds ``HeldRoutes``.
        document_ids_BT, block_ids_BT: as the decoder has them.
        training: whether a GPU may use the kernels of training.
        asked: what is told of the tokens.

    Raises:
        ValueError: bidirectional blocks, a mask that is no 2-D one, a cache that keeps no routes.
    """

    def __init__(
        self,
        config: KosmosTextConfig,
        hidden_BTD: Tensor,
        attention_mask: Tensor | None,
        cache: Cache | None,
        document_ids_BT: Tensor | None,
        block_ids_BT: Tensor | None,
        training: bool,
        asked: Asked,
    ) -> None:
        if block_ids_BT is not None:
            raise ValueError(
                "block_ids ask for bidirectional attention, which routed layers (text_config.routing_layers) do not "
                "have; set the objective's bidirectional to false"
            )
        if attention_mask is not None and attention_mask.ndim != 2:
            raise ValueError("routed layers (text_config.routing_layers) take a 2-D attention_mask, 0 on padding")
        self.asked, self.cache = asked, cache
        self.seen = cache.get_seq_length() if cache is not None else 0
        rows, length = hidden_BTD.shape[:2]
        held = held_by(cache) if self.seen else None
        if self.seen and held is None:
            raise ValueError("past_key_values were not made by this model, or keep no routes; read the prompt again")
        self.held = held or HeldRoutes.nothing(rows, hidden_BTD.device)
        described_BT = documents_of(hidden_BTD, attention_mask, cache, document_ids_BT, None)
        documents_BT = described_BT
        if documents_BT is None:  # each row is one
            documents_BT = torch.zeros(rows, length, dtype=torch.long, device=hidden_BTD.device)
            if attention_mask is not None:
                documents_BT = documents_BT.masked_fill(attention_mask[:, -length:] == 0, -1)
        persona_BT = torch.zeros_like(documents_BT, dtype=torch.bool) if asked.persona_BT is None else asked.persona_BT
        writing_BT = _writing(documents_BT, held is not None) if asked.writing_BT is None else asked.writing_BT
        self.marks = find_marks(persona_BT, writing_BT, documents_BT, self.held, self.seen)
        self.sets = find_sets(self.marks, self.seen)
        self.plans = self._plan(described_BT, attention_mask, training)
        refuse_dropout(self.plans[0], config.attention_dropout)

    def _plan(self, documents_BT: Tensor | None, attention_mask: Tensor | None, training: bool) -> list[AttentionPlan]:
        """Choose how the sets are attended to, as ``plan_attention`` does for all keys together."""
        if documents_BT is not None and documents_BT.device.type == "cpu":
            return [AttentionPlan("runs", runs=key_runs(one, documents_BT)) for one in self.sets]
        if documents_BT is not None and training:
            return [AttentionPlan("flex", block_mask=interval_mask(one.first_BT, one.last_BT)) for one in self.sets]
        masks = [dense_mask(one, self.seen, attention_mask) for one in self.sets]
        return [AttentionPlan("dense", mask=mask, whole_rows=False) for mask in masks]

    def weigh(self, predictor: WeightPredictor, hidden_BTD: Tensor) -> Routes:
        """Predict α from the states that enter the first routed layer, or take the one that is set by hand."""
        sum_BT, count_BT = self._context(predictor(hidden_BTD))
        logit_BT: Tensor | None = None
        if self.asked.alpha is None:
            logit_BT = predictor.out.bias.float() + (sum_BT / count_BT.clamp(min=1)).float()
            alpha_BT = logit_BT.sigmoid()
        else:
            given = torch.as_tensor(self.asked.alpha, dtype=torch.float32, device=hidden_BTD.device)
            alpha_BT = given.reshape(-1, 1).expand(hidden_BTD.shape[:2])
        writing, target = self.marks.writing, self.marks.target
        shares = (
            torch.where(writing, alpha_BT, target.float()),
            torch.where(writing, 2 - alpha_BT, (~target).float()),
            writing.float(),
        )
        made = [
            (share * one.there_BT).to(hidden_BTD.dtype)[..., None, None]
            for share, one in zip(shares, self.sets, strict=True)
        ]
        return Routes(self.plans, made, alpha_BT, logit_BT)

    def _context(self, votes_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Sum the votes, and count the tokens, of each query's context; the cache keeps what the next pass needs.

        Running sums, of which that at the context's beginning is taken off; in double precision, so that the place of a
        document in its row does not matter.
        """
        marks, held = self.marks, self.held
        valid_BT = marks.real & ~marks.target
        totals, found = [], []
        for each_BT, before_B, run_B in (
            (votes_BT.double() * valid_BT, held.votes, held.run_votes),
            (valid_BT.double(), held.count, held.run_count),
        ):
            after_BT = before_B[:, None] + each_BT.cumsum(1)
            until_BT = after_BT - each_BT
            base_BT = _at(until_BT, marks.begin - self.seen, torch.zeros_like(before_B))
            found.append(_at(until_BT - base_BT, marks.run - self.seen, run_B))
            totals.append(after_BT[:, -1] - base_BT[:, -1])
        if self.cache is not None:
            places = [one[:, -1] for one in (marks.document, marks.first, marks.last, marks.begin)]
            run_B = torch.where(marks.writing[:, -1], marks.run[:, -1], torch.full_like(places[0], -1))
            sums = (one.detach() for one in (*totals, *(run[:, -1] for run in found)))
            kept = [*places, run_B, *sums]
            self.cache.routes = HeldRoutes(*kept)  # type: ignore[attr-defined]
        return found[0], found[1]


def _at(values_BT: Tensor, places_BT: Tensor, earlier_B: Tensor) -> Tensor:
    """The values at these places of the pass; ``earlier_B`` where a place is before it."""
    found = values_BT.gather(1, places_BT.clamp(0, values_BT.shape[1] - 1))
    return torch.where(places_BT >= 0, found, earlier_B[:, None])


def _writing(documents_BT: Tensor, goes_on: bool) -> Tensor:
    """What is written where nobody says so: all that follows a prompt, and of a prompt its last output."""
    place_T = torch.arange(documents_BT.shape[1], device=documents_BT.device)
    last_B1 = torch.where(documents_BT >= 0, place_T, -1).amax(1, keepdim=True)
    return (place_T == last_B1) | goes_on


def held_by(cache: Any) -> HeldRoutes | None:
    """Return what a cache holds of routes.

    Raises:
        ValueError: a cache of a kind that would keep none.
    """
    if cache is not None and not isinstance(cache, DynamicCache):
        raise ValueError(
            f"a {type(cache).__name__} cannot hold what attention routing keeps of persona and context; use the "
            "dynamic cache (cache_implementation='dynamic', the default)"
        )
    return getattr(cache, "routes", None)


def routing_loss(
    logit_BT: Tensor,
    related_BT: Tensor,
    targets_BT: Tensor,
    weight_BT: Tensor | None = None,
    num_items: Tensor | int | float | None = None,
) -> Tensor:
    """Return the mean over what is written of the cross-entropy of α against 1, the answer is about the persona, or 0.

    Args:
        logit_BT: of α.
        related_BT: 1, 0, or -1 where nobody knows, at each output.
        targets_BT: what each output must predict; -100 ignored.
        weight_BT, num_items: weights of the outputs and what the sum is divided by, as in ``loss.cross_entropy``.
    """
    weight_BT = (targets_BT != IGNORE).float() if weight_BT is None else weight_BT * (targets_BT != IGNORE)
    each_BT = F.binary_cross_entropy_with_logits(logit_BT, related_BT.clamp(min=0).float(), reduction="none")
    total = (each_BT * weight_BT * (related_BT >= 0)).sum()
    return total / (weight_BT.sum() if num_items is None else num_items)
