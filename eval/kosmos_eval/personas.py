"""``kosmos eval personas CHECKPOINT CORPUS``: does a model write for whom it is told to, or only as everybody?

Held-out texts are judged under their own persona, under another document's, and under one that nobody knows. If the
persona says anything, the texts are likelier under the right one. With ``--train`` the model also writes, and a
classifier of words that real texts have trained tells whether what was written for somebody is told apart from what was
written for another (:mod:`.persona_words`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kosmos.answer_options import checked_alpha
from kosmos.loading import load
from kosmos.modalities import stack_inputs
from kosmos_data import objectives
from kosmos_data.document import Document, Persona
from kosmos_data.errors import BadSample
from kosmos_data.example import Example
from kosmos_data.reader import Corpus

from .metrics import MetricScore
from .persona_words import persona_of, tell_apart
from .statistics import compare, interval

NOBODY = "\N{REPLACEMENT CHARACTER} nobody"
"""A name that no persona has."""


def judge(
    checkpoint: str | Path,
    shards: str | Path,
    objective: str | dict[str, Any] = "causal",
    limit: int | None = None,
    batch: int = 32,
    seed: int = 0,
    train: str | Path | None = None,
    write: int = 200,
    max_new_tokens: int = 64,
    alpha: float | None = None,
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Return the mean NLL of a token (nats) under each persona, and the paired differences with 95 % intervals.

    Texts of one speech or dialogue are not independent, so the intervals draw whole ones (``meta.speech``).

    Args:
        checkpoint: folder of a checkpoint or of a run.
        shards: documents with a persona.
        objective: tells which tokens count; ``{name: causal, loss: supervised}`` for dialogues.
        limit: so many documents, always the same ones; None: all.
        batch: documents at a time.
        seed: of what is drawn.
        train: real texts with personas, which train the classifier; None: nothing is written.
        write: for so many of the documents a text is written, under the right and under the wrong persona.
        max_new_tokens: length of these texts.
        alpha: how much the persona counts in a model with attention routing, 0 to 1; None: as the model predicts,
            whose mean over the tokens is reported as ``alpha``.
        out: folder for the texts that are written, for ``kosmos eval rate``.

    Raises:
        ValueError: a document without a persona, personas that are all the same, a model that reads none, alpha for one
            without attention routing, or out without train.
    """
    if out is not None and train is None:
        raise ValueError(f"out={str(out)!r}: nothing is written without the texts of --train")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: at least one document is judged")
    model, processor = load(checkpoint)
    by_hand = {} if alpha is None else {"alpha": checked_alpha(alpha)}
    make, draw = objectives.from_settings(objective, processor), random.Random(seed)
    documents = _chosen(Corpus(shards), limit, draw)
    versions = {"right": documents, "wrong": others(documents, draw), "unknown": unknown(documents)}
    sums = {
        name: np.array(_likelihoods_of(model, [_example(make, document) for document in given], batch, by_hand))
        for name, given in versions.items()
    }
    report = _compared(sums, documents, seed)
    if model.config.is_routed:
        report["alpha"] = float(sums["right"][:, 2].sum() / sums["right"][:, 1].sum())
    if train is not None:
        some = sorted(draw.sample(range(len(documents)), min(write, len(documents))))
        right, wrong = ([versions[name][index] for index in some] for name in ("right", "wrong"))
        torch.manual_seed(seed)
        keep = None if out is None else Path(out)
        report["written"] = tell_apart(
            model, processor, Corpus(train), right, wrong, max_new_tokens, batch, seed, by_hand, keep
        )
    return report


def _chosen(corpus: Corpus, limit: int | None, draw: random.Random) -> list[Document]:
    chosen = sorted(draw.sample(range(len(corpus)), min(limit or len(corpus), len(corpus))))
    return [corpus[index] for index in chosen]


def _likelihoods_of(model: Any, examples: Sequence[Example], batch: int, by_hand: dict[str, Any]) -> list[Any]:
    batches = (examples[at : at + batch] for at in range(0, len(examples), batch))
    return [row for some in batches for row in _likelihoods(model, some, by_hand)]


def _compared(sums: dict[str, np.ndarray], documents: Sequence[Document], seed: int) -> dict[str, Any]:
    """What is reported of the sums of each version: its NLL, and how much it differs from that of the right one."""
    scores = {
        name: MetricScore("nll", sum_, lambda totals: totals[..., 0] / totals[..., 1]) for name, sum_ in sums.items()
    }
    groups = [str(document.meta.get("speech", document.key)) for document in documents]
    report: dict[str, Any] = {"documents": len(documents), "groups": len(set(groups))}
    for name, score in scores.items():
        low, high = interval(score, groups, seed)
        report[name] = {"nll": score.value, "low": low, "high": high}
    for name in ("wrong", "unknown"):
        report[f"{name} - right"] = compare(scores["right"], scores[name], groups, seed).to_dict()
    return report


def _example(make: Any, document: Document) -> Example:
    try:
        return make(document, 0)
    except BadSample as error:
        raise ValueError(f"{document.key}: {error}; evaluation skips nothing") from error


def others(documents: Sequence[Document], draw: random.Random) -> list[Document]:
    """The documents, each with a persona that another of them has and that differs in its first key."""
    personas = list({str(persona_of(document)): persona_of(document) for document in documents}.values())
    found = []
    for document in documents:
        own = persona_of(document).pairs()[0]
        differing = [one for one in personas if one.pairs()[0] != own]
        if not differing:
            raise ValueError(f"{document.key}: every persona has {own[0]}: {own[1]}, so there is no wrong one")
        found.append(_with(document, draw.choice(differing)))
    return found


def unknown(documents: Sequence[Document]) -> list[Document]:
    """The documents with personas of the same keys that nobody has."""
    return [_with(document, Persona(dict.fromkeys(persona_of(document).values, NOBODY))) for document in documents]


def _with(document: Document, persona: Persona) -> Document:
    first = document.segments.index(persona_of(document))
    return replace(document, segments=[*document.segments[:first], persona, *document.segments[first + 1 :]])


@torch.no_grad()
def _likelihoods(model: Any, examples: Sequence[Example], by_hand: dict[str, float]) -> np.ndarray:
    """Sums of the NLL, of the weights, and of α, each token by its weight, of each example, (N, 3)."""
    width = max(len(example) for example in examples)

    def column(name: str, filler: float, dtype: torch.dtype) -> torch.Tensor:
        rows = [torch.as_tensor(np.asarray(getattr(example, name))).to(dtype) for example in examples]
        return torch.stack([torch.nn.functional.pad(row, (0, width - len(row)), value=filler) for row in rows])

    weight = column("weight", 0.0, torch.float32)
    inputs = {
        "input_ids": column("token", 0, torch.long),
        "shift_labels": column("label", -100, torch.long),
        "loss_weight": weight,
        "document_ids": column("document", -1, torch.long),
        **stack_inputs(placed for example in examples for placed in example.placed),
    }
    if any((example.block >= 0).any() for example in examples):
        inputs["block_ids"] = column("block", -1, torch.long)
    output = model(**{name: tensor.to(model.device) for name, tensor in inputs.items()}, **by_hand)
    values = (output.token_loss, torch.ones_like(weight), output.alpha)
    sums = [(weight * 0.0 if one is None else one.cpu() * weight).sum(1) for one in values]
    return torch.stack(sums, dim=1).double().numpy()
