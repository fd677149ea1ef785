"""Entities: a person, a product, a president, each an id with a feature of its own in one place of the decoder.

::

    ids     <s> <entity_slot> <entity_slot> Explanation: the rooms are clean </s>
                 user 7        item 3        feature = connector(table[row of the id])

Every kind (``user``, ``item`` …) has a table, and behind its last id a row for ids that nobody knows. The tables lie
behind each other in one matrix, so that backward reaches all of them in one step, whichever kinds a rank's rows hold.
In training an id is taken for unknown with the probability ``unknown_rate``: so the unknown learns what is common.

PETER (Li et al. 2021, arXiv 2105.11601) trains two more losses at the places of entities: a rating is predicted at the
user's place, and at the item's the words that the explanation will have, in no order.
Which targets stand where, the objective ``peter`` says (kosmos_data/objectives/peter.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .encoder_configs import KosmosEntityConfig
from .initialization import init_default, linear
from .loss import IGNORE
from .suggest import suggest


@dataclass(frozen=True, slots=True)
class Targets:
    """An entity's row, and what is learned at its place; weights are those of sums, not of means.

    Attributes:
        row: of the matrix of all tables.
        rating, rating_weight: predicted with squared error; weight 0: no rating.
        words, word_weight: ids (L,) that are predicted in no order, and the weight of each.
    """

    row: int
    rating: float = 0.0
    rating_weight: float = 0.0
    words: Sequence[int] = ()
    word_weight: float = 0.0


class Rows:
    """Which row of the matrix an id has.

    Args:
        kinds: of each kind how many ids there are, or their names in order.
    """

    def __init__(self, kinds: Mapping[str, int | Sequence[str]]) -> None:
        self.sizes = {kind: ids if isinstance(ids, int) else len(ids) for kind, ids in kinds.items()}
        self.first = dict(zip(sorted(self.sizes), first_rows(self.sizes), strict=False))
        self.numbers = {
            kind: {name: number for number, name in enumerate(ids)}
            for kind, ids in kinds.items()
            if not isinstance(ids, int)
        }

    def __call__(self, kind: str, identity: int | str) -> int:
        """Return the row of an id: a number, or a name where the kind has names; that of the unknown for any other.

        Raises:
            ValueError: there is no such kind.
        """
        if kind not in self.sizes:
            known = suggest(kind, self.sizes) if self.sizes else "its model was trained without personas and ids"
            raise ValueError(f"the processor knows no entities of the kind {kind!r}; {known}")
        names, size = self.numbers.get(kind), self.sizes[kind]
        number = names.get(identity, size) if names is not None and isinstance(identity, str) else identity
        in_table = isinstance(number, int) and 0 <= number < size
        return self.first[kind] + (int(number) if in_table else size)


def first_rows(sizes: Mapping[str, int]) -> list[int]:
    """Return where each kind's table begins, and the end of the last; an unknown is the last row of each.

    The tables lie in the order of the kinds' names: JSON files, which keep the kinds, have no other order.
    """
    return list(accumulate((sizes[kind] + 1 for kind in sorted(sizes)), initial=0))


class EntityEncoder(nn.Module):
    """The tables of all kinds; all of it learns. A model that predicts ratings puts its head here, beside them."""

    def __init__(self, config: KosmosEntityConfig) -> None:
        super().__init__()
        self.width, self.unknown_rate = config.hidden_size, config.unknown_rate
        self.edges = first_rows(config.kinds or {})
        self.tables = nn.Embedding(self.edges[-1], self.width)
        self.rating_head: RatingHead | None = None

    def forward(self, rows_I: Tensor) -> Tensor:
        """Rows (I,) of the tables to features (I, C).

        Raises:
            ValueError: a row outside of them.
        """
        if not rows_I.is_meta and not torch.compiler.is_compiling() and rows_I.numel():
            low, high = (int(bound) for bound in rows_I.aminmax())
            if low < 0 or high >= self.edges[-1]:
                raise ValueError(
                    f"entity_ids hold row {low if low < 0 else high}, but the tables have {self.edges[-1]} rows; take "
                    "the processor of this checkpoint"
                )
        if self.training and self.unknown_rate:
            ends = torch.tensor(self.edges[1:], device=rows_I.device)
            unknown_I = ends[torch.bucketize(rows_I, ends, right=True)] - 1
            dropped_I = torch.rand(rows_I.shape, device=rows_I.device) < self.unknown_rate
            rows_I = torch.where(dropped_I, unknown_I, rows_I)
        return self.tables(rows_I)


class RatingHead(nn.Module):
    """PETER's MLP at the user's place: w · sigmoid(W h + b) + c."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = linear(width, width, init_default)
        self.out = linear(width, 1, init_default)

    def forward(self, hidden_ID: Tensor) -> Tensor:
        """Hidden states (I, D) to ratings (I,), fp32."""
        return self.out(torch.sigmoid(self.dense(hidden_ID))).squeeze(-1).float()


def stack_entities(payloads: Sequence[Any]) -> dict[str, Tensor]:
    """Rows, or ``Targets``, to ``entity_ids`` (I,), and where one has targets also to those.

    They are ``entity_ratings`` (I, 2), rating and weight; ``entity_words`` (I, L), -100 behind the last; and
    ``entity_word_weight`` (I,).
    """
    made = [one if isinstance(one, Targets) else Targets(int(one)) for one in payloads]
    stacked = {"entity_ids": torch.tensor([one.row for one in made])}
    if not any(isinstance(one, Targets) for one in payloads):
        return stacked
    words_IL = np.full((len(made), max(len(one.words) for one in made)), IGNORE, dtype=np.int64)
    for row, one in zip(words_IL, made, strict=True):
        row[: len(one.words)] = one.words
    return stacked | {
        "entity_ratings": torch.tensor([[one.rating, one.rating_weight] for one in made]),
        "entity_words": torch.from_numpy(words_IL),
        "entity_word_weight": torch.tensor([one.word_weight for one in made]),
    }


def context_loss(logits_IV: Tensor, words_IL: Tensor, weight_I: Tensor) -> Tensor:
    """Return Σ weight · Σ -log softmax(logits)[word]: PETER's context prediction, which words come, in no order."""
    log_IV = F.log_softmax(logits_IV.float(), dim=-1)
    nll_IL = -log_IV.gather(1, words_IL.clamp(min=0)) * (words_IL != IGNORE)
    return (nll_IL.sum(1) * weight_I).sum()


def rating_loss(predicted_I: Tensor, ratings_I2: Tensor) -> Tensor:
    """Return Σ weight · (rating - predicted)²: PETER's rating prediction."""
    return ((predicted_I - ratings_I2[:, 0]).square() * ratings_I2[:, 1]).sum()


class EntityOutput(NamedTuple):
    """What is read at the places of entities: ``loss`` (None: nothing learns there), ratings (I,), both losses (2,)."""

    loss: Tensor | None = None
    ratings: Tensor | None = None
    parts: Tensor | None = None


def read_entities(
    model: Any, hidden_BTD: Tensor, input_ids_BT: Tensor, inputs: Mapping[str, Any], divisor: Any
) -> EntityOutput:
    """Predict ratings and words at the places of a batch's entities, and sum the losses where there are targets.

    A rank whose rows have no entity reads its first token and loses nothing by it, so that the head has its gradient
    there too.

    Args:
        model: a ``KosmosForConditionalGeneration`` with entities.
        hidden_BTD: the decoder's output.
        input_ids_BT: tell where the entities are.
        inputs: hold those of the modality, if this batch has any.
        divisor: of the sums; None: the sum of the words' and ratings' weights is taken as it is.
    """
    head, ids_I = model.model.entity_encoder.rating_head, inputs.get("entity_ids")
    ratings_I2, words_IL = inputs.get("entity_ratings"), inputs.get("entity_words")
    if ids_I is None and (head is None or not inputs.get("dummy_image")):
        return EntityOutput()
    if ids_I is None:
        return EntityOutput(loss=head(hidden_BTD[:1, 0]).sum() * 0.0)
    hidden_ID = hidden_BTD[input_ids_BT == model.config.entity_token_id]
    predicted_I = None if head is None else head(hidden_ID)
    if ratings_I2 is None or words_IL is None:
        idle = predicted_I.sum() * 0.0 if predicted_I is not None and inputs.get("dummy_image") else None
        return EntityOutput(idle, predicted_I)
    if predicted_I is None and bool((ratings_I2[:, 1] > 0).any()):
        raise ValueError("the entities have ratings to learn, but the model has no head: set entity_config.rating")
    chosen = inputs["entity_word_weight"] > 0
    logits_NV = model.lm_head(hidden_ID[chosen])
    context = context_loss(logits_NV, words_IL[chosen], inputs["entity_word_weight"][chosen])
    rating = context.new_zeros(()) if predicted_I is None else rating_loss(predicted_I, ratings_I2)
    parts = torch.stack([context, rating]) / (1 if divisor is None else divisor)
    return EntityOutput(parts.sum(), predicted_I, parts.detach())


def parse_entity(text: str) -> dict[str, int | str]:
    """Read ``user: 7`` or ``president: "Abraham Lincoln"``, as a prompt has it between ``<entity>`` and ``</entity>``.

    Raises:
        ValueError: no kind before a colon.
    """
    kind, colon, identity = text.partition(":")
    kind, identity = kind.strip(), identity.strip()
    if not (kind and colon and identity):
        raise ValueError(f"<entity>{text[:40]}</entity>: write <entity>user: 7</entity>, a kind and an id")
    quoted = len(identity) > 1 and identity[0] == identity[-1] == '"'
    return {kind: identity[1:-1] if quoted else int(identity) if identity.isdecimal() else identity}


def spell_entity(ids: Mapping[str, int | str]) -> str:
    """Write an entity as ``parse_entity`` reads it."""
    ((kind, identity),) = ids.items()
    return f'{kind}: "{identity}"' if isinstance(identity, str) else f"{kind}: {identity}"
