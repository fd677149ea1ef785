"""How a finished run is read for a claim: one value an item, so that arms are compared item by item.

``windows``: loss in nats a token of the last tokens of held-out windows, which are the same tokens whatever part of the
text before them is read. ``task``: a metric of ``kosmos eval``, summed up by picture or item.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kosmos import settings
from kosmos.loading import load
from kosmos_data.reader import Corpus
from kosmos_eval import tasks
from kosmos_eval.evaluate import evaluate
from kosmos_eval.items import Item
from kosmos_eval.prompts import candidates
from kosmos_eval.task_data import TaskData
from kosmos_eval.tasks import Task

from .jobs import Figures

BATCH = 16


@dataclass
class Windows:
    """Held-out windows of text, one a document, from its beginning."""

    shards: str = ""
    """Corpus."""
    keys: str = ""
    """Only documents whose key begins so."""
    count: int = 128
    """So many windows, spread evenly over the documents that are long enough."""
    longest: int = 128
    """Tokens of a window; shorter documents are left out."""
    context: int = 128
    """The last so many tokens of it are read, behind ``<s>``, which counts as one."""
    targets: int = 64
    """Loss is that of the last so many."""
    bidirectional: bool = False
    """What stands before the targets is seen both ways, as PrefixLM does."""
    blockwise: int | None = None
    """Training length of blockwise causal attention; None: every token sees all before it."""

    def check(self) -> None:
        """Refuse windows that do not fit together."""
        if not 0 < self.targets < self.context <= self.longest:
            raise ValueError(
                f"read: targets={self.targets}, context={self.context}, longest={self.longest} must rise from 1 on"
            )


@dataclass
class Asked:
    """A task of ``kosmos eval``."""

    task: str = ""
    """Name of the task."""
    data: str = ""
    """Folder of its data."""
    shots: int = 0
    """Demonstrations."""
    labels: Literal[True, "random", "shuffled"] = True
    """Labels of the demonstrations, see ``demonstrations.labels``."""
    context: str = "image+text"
    """What a prompt holds."""
    limit: int | None = None
    """So many items, the same ones every time."""
    metric: str = "accuracy"
    """What is taken of each item."""
    set: dict[str, Any] = field(default_factory=dict)
    """Keys of the task's YAML that are changed: ``{chain.samples: 5}``."""
    guess: bool = False
    """Ask nothing: an item counts with the chance of a guess among its candidates."""


# Readings of one run follow each other: it is loaded, and its text made into tokens, once.
_loaded = lru_cache(maxsize=1)(partial(load, device="cpu"))


@lru_cache(maxsize=1)
def _windows(folder: str, shards: str, keys: str, longest: int, count: int) -> Tensor:
    """The windows' token ids, (N, ``longest``).

    Raises:
        ValueError: no document is long enough.
    """
    _, processor = _loaded(folder)
    corpus = Corpus(shards)
    texts = (document.text for document in (corpus[at] for at in range(len(corpus))) if document.key.startswith(keys))
    found = [ids[:longest] for ids in map(processor.encode_text, texts) if len(ids) >= longest]
    if not found:
        raise ValueError(f"{shards}: no document {keys!r}… has {longest} tokens")
    return torch.tensor(found[:: max(1, len(found) // count)][:count])


@torch.no_grad()
def window_losses(model: Any, rows_NT: Tensor, bos: int, wanted: Windows) -> list[float]:
    """Mean loss of each window's targets in nats; what is no number counts as a guess among all tokens."""
    wanted.check()
    model.config.text_config.blockwise_causal_length = wanted.blockwise
    rows_NT = rows_NT[:, wanted.longest - wanted.context :].clone()
    rows_NT[:, 0] = bos
    guess = math.log(model.config.text_config.vocab_size)
    losses: list[float] = []
    for ids_BT in rows_NT.split(BATCH):
        asked: dict[str, Tensor] = {}
        if wanted.bidirectional:
            asked = {"block_ids": torch.full_like(ids_BT, -1)}
            asked["block_ids"][:, : wanted.context - wanted.targets] = 0
        loss_BT = model(input_ids=ids_BT, labels=ids_BT, **asked).token_loss
        # an output is judged by the token that follows it
        own_B = loss_BT[:, -wanted.targets - 1 : -1].double().mean(1)
        losses += torch.where(own_B.isfinite(), own_B, guess).tolist()
    return losses


def read_run(folder: str, reading: dict[str, Any], _: Path) -> Figures:
    """Losses of a run on its windows."""
    wanted = settings.from_dict(Windows, reading, "read: ")
    model, processor = _loaded(folder)
    rows_NT = _windows(folder, wanted.shards, wanted.keys, wanted.longest, wanted.count)
    values = window_losses(model, rows_NT, processor.tokenizer.bos_token_id, wanted)
    return {"values": [round(value, 5) for value in values], "weights": [1] * len(values)}


def without_demonstrations(reading: dict[str, Any], seed: int) -> tuple[dict[str, Any], int]:
    """The same reading of a task and its seed, but for zero shots with nothing that decides about demonstrations."""
    return ({**reading, "labels": True}, 0) if not reading.get("shots") else (reading, seed)


def read_task(checkpoint: str, reading: dict[str, Any], seed: int, folder: Path) -> Figures:
    """What a checkpoint scores on a task with the demonstrations of a seed; one value a picture, or an item."""
    asked = settings.from_dict(Asked, reading, "read: ")
    changes = [f"demonstrations.seed={seed}", f"demonstrations.labels={asked.labels}"]
    changes += [f"{key}={json.dumps(value)}" for key, value in asked.set.items()]
    data = TaskData(tasks.load(asked.task, changes), asked.data)
    items = data.subset(asked.limit)
    scores = _guessed(data.task, items) if asked.guess else _scored(checkpoint, data, asked, folder)
    by_picture: dict[str, list[float]] = {}
    for item in items:
        by_picture.setdefault(item.cluster, []).append(scores[item.id])
    return {
        "values": [round(sum(own) / len(own), 5) for own in by_picture.values()],
        "weights": [len(own) for own in by_picture.values()],
    }


def _scored(checkpoint: str, data: TaskData, asked: Asked, folder: Path) -> dict[str, float]:
    """What the checkpoint scores on each item, by its id."""
    model, processor = load(checkpoint, "cpu")
    evaluate(
        model, processor, data, data.folder, shots=[asked.shots], contexts=[asked.context], limit=asked.limit,
        out=folder, with_baselines=False,
    )  # fmt: skip
    (path,) = (folder / "samples").rglob("*.jsonl")
    records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {record["id"]: float(record["metrics"][asked.metric]) for record in records}


def _guessed(task: Task, items: Sequence[Item]) -> dict[str, float]:
    """The chance that a guess among its candidates is right, of each item."""
    return {item.id: 1 / len(candidates(task, item)) for item in items}
