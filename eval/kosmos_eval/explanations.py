"""``kosmos eval explanations CHECKPOINT REVIEWS``: what a model of the objective ``peter`` says of held-out reviews.

Ratings are read at the users' places, explanations written from the ids (and features) alone. ``--swap`` gives each
review the user, the item or both of another one: what is right for the ids must then be wrong for the review.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from kosmos.entities import Targets
from kosmos.loading import load
from kosmos.modalities import stack_inputs
from kosmos_data import errors, objectives
from kosmos_data.document import Document, Entity, Text
from kosmos_data.errors import BadSample
from kosmos_data.example import Example
from kosmos_data.objectives.peter import Peter
from kosmos_data.reader import Corpus
from kosmos_data.reviews import features_of

from .metrics import explanations as metrics

Swap = Literal["none", "user", "item", "both"]


@dataclass(frozen=True)
class Explained:
    """A review and what the model made of its ids; ratings are None where a review, or the model, has none."""

    document: Document
    reference: str
    text: str
    rating: float | None
    predicted: float | None


def explain(
    checkpoint: str | Path,
    shards: str | Path,
    swap: Swap = "none",
    objective: str | dict[str, Any] = "peter",
    limit: int | None = None,
    batch: int = 128,
    max_new_tokens: int = 32,
    seed: int = 0,
) -> list[Explained]:
    """Predict the rating and write the explanation, greedily, of each review of a corpus.

    Args:
        checkpoint: folder of a checkpoint or of a run.
        shards: the reviews.
        swap: whose ids are those of another review, drawn anew for each.
        objective: ``peter`` with the options of the training.
        limit: so many reviews, always the same ones; None: all.
        batch: reviews at a time.
        max_new_tokens: longest explanation.
        seed: of what is drawn.

    Raises:
        ValueError: another objective, a limit below 1, or a model without entities.
        BadSample: a document that is no review.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit {limit} must be at least 1")
    model, processor = load(checkpoint)
    if model.config.entity_config is None:
        raise ValueError(f"{checkpoint}: the model has no entity_config, so ids mean nothing to it")
    make = objectives.from_settings(objective, processor)
    if not isinstance(make, Peter):
        raise ValueError(f"objective={objective}: explanations are evaluated as 'peter' has trained them")
    corpus, draw = Corpus(shards), random.Random(seed)
    chosen = sorted(draw.sample(range(len(corpus)), min(limit or len(corpus), len(corpus))))
    documents = [corpus[index] for index in chosen]
    asked = swapped(documents, swap, make, draw)
    found: list[tuple[str, float | None]] = []
    for start in range(0, len(asked), batch):
        part = slice(start, start + batch)
        found += _answer(model, processor, [make(one, 0) for one in asked[part]], max_new_tokens)
    return [
        Explained(document, _reference(document), text, _rating(document), predicted)
        for document, (text, predicted) in zip(documents, found, strict=True)
    ]


def swapped(documents: Sequence[Document], swap: Swap, make: Peter, draw: random.Random) -> list[Document]:
    """The reviews with the users, items or both of others; each of the two is drawn for itself."""
    kinds = {"none": (), "user": (make.user,), "item": (make.item,), "both": (make.user, make.item)}[swap]
    asked = list(documents)
    for kind in kinds:
        ids = [_identity(document, kind) for document in documents]
        for place, document in enumerate(asked):
            others = [other for other in dict.fromkeys(ids) if other != ids[place]]
            other = Entity({kind: draw.choice(others or ids)})
            segments = [other if isinstance(one, Entity) and kind in one.ids else one for one in document.segments]
            asked[place] = replace(document, segments=segments)
    return asked


def report(found: Sequence[Explained]) -> dict[str, float]:
    """All figures over the reviews, by name; ROUGE where rouge_score is installed.

    ``rmse_of_mean`` is what their own mean rating would have.
    """
    texts, references = [one.text for one in found], [one.reference for one in found]
    figures = {
        "reviews": float(len(found)),
        "exact": float(np.mean([a == b for a, b in zip(texts, references, strict=True)])),
    }
    if rated := [(one.rating, one.predicted) for one in found if one.rating is not None and one.predicted is not None]:
        ratings, predicted = zip(*rated, strict=True)
        figures |= metrics.rating_errors(ratings, predicted)
        figures["rmse_of_mean"] = float(np.std(ratings))
    figures |= {f"bleu_{order}": metrics.bleu(texts, references, order) for order in (1, 4)}
    figures |= metrics.rouge(texts, references) if importlib.util.find_spec("rouge_score") else {}
    figures |= {f"distinct_{order}": metrics.distinct_n(texts, order) for order in (1, 2)}
    figures["usr"] = metrics.unique_sentence_ratio(texts)
    wanted = [features_of(one.document) for one in found]
    if features := {feature for given in wanted for feature in given}:
        named = metrics.named_features(texts, features)
        figures["fmr"] = metrics.feature_matching_ratio(named, wanted)
        figures["fcr"] = metrics.feature_coverage_ratio(named, features)
        figures["div"] = metrics.feature_diversity(named)
    return figures


@torch.no_grad()
def _answer(
    model: Any, processor: Any, examples: Sequence[Example], max_new_tokens: int
) -> Iterator[tuple[str, float | None]]:
    """Text and rating of each, from what stands before its first word; prompts are padded on the left."""
    model.take_rules(processor)
    lengths = [int(np.argmax(example.weight > 0)) + 1 for example in examples]
    width, pad = max(lengths), processor.tokenizer.pad_token_id
    ids = torch.full((len(examples), width), pad)
    mask, blocks = torch.zeros_like(ids), torch.full_like(ids, -1)
    for row, (example, length) in enumerate(zip(examples, lengths, strict=True)):
        ids[row, width - length :] = torch.from_numpy(example.token[:length]).long()
        blocks[row, width - length :] = torch.from_numpy(example.block[:length]).long()
        mask[row, width - length :] = 1
    placed = [replace(one, payload=_row(one.payload)) for example in examples for one in example.placed]
    inputs = {"input_ids": ids, "attention_mask": mask, **stack_inputs(placed)}
    if (blocks >= 0).any():
        inputs["block_ids"] = blocks
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    ratings = model(**inputs, logits_to_keep=1).ratings
    written = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)[:, width:]
    first = np.cumsum([0, *(sum(one.modality == "entity" for one in example.placed) for example in examples)])
    for text, at in zip(processor.tokenizer.batch_decode(written, skip_special_tokens=True), first, strict=False):
        yield text.strip(), None if ratings is None else float(ratings[at])


def _row(payload: Any) -> Any:
    return np.array(payload.row) if isinstance(payload, Targets) else payload


def _reference(document: Document) -> str:
    return "".join(one.text for one in document.segments if isinstance(one, Text) and one.supervised).strip()


def _rating(document: Document) -> float | None:
    return next((one.rating for one in document.segments if isinstance(one, Entity) and one.rating is not None), None)


def _identity(document: Document, kind: str) -> int | str:
    ids = [one.ids[kind] for one in document.segments if isinstance(one, Entity) and kind in one.ids]
    if not ids:
        raise BadSample(errors.FIELDS, f"{document.key}: a review has one {kind}")
    return ids[0]
