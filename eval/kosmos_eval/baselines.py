"""What one gets without looking: the scores that a result must beat to mean anything.

``majority answer`` always says the training split's most frequent answer; ``question only`` says the most frequent
training answer to exactly this text. Without a training split, and without a chance level, ``constant answer`` always
says the evaluated split's own most frequent answer. Of texts that go on from a beginning ``another's continuation`` is
how another item really goes on: as good a text, and as like as any two are. All are computed from the data with the
task's own metric. Source: Goyal et al. 2017 (VQAv2), which shows how far language priors carry.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache
from typing import Any

from . import prompts
from .items import Item
from .metrics import WRITING_METRICS
from .results import Row, make_rows
from .tasks import Task

MAJORITY, QUESTION_ONLY, CHANCE, SHUFFLED = "majority answer", "question only", "chance", "shuffled"
CONSTANT = "constant answer"
ANOTHERS = "another's continuation"


def baseline_rows(task: Task, items: Sequence[Item], train: Sequence[Item], seed: int) -> list[Row]:
    """Rows of the baselines on the evaluated items; ``train`` may be empty."""
    rows: list[Row] = []
    value = chance(task, items)
    is_fixed = any(item.candidates or item.candidate_images for item in items)  # another item's answer is no choice
    is_open = not is_fixed and task.decoding.method != "likelihood"
    if is_open and train:
        rows += _trained(task, items, train, seed)
    elif is_open and set(task.metrics) & set(WRITING_METRICS):
        if all(item.answers for item in items) and len(items) > 1:
            others = [item.answers[0] for item in (*items[1:], items[0])]
            rows += _rows(task, items, others, ANOTHERS, "none", seed)
    elif is_open and value is None:
        common = _common([_common(item.answers) for item in items])
        rows += _rows(task, items, [common] * len(items), CONSTANT, "none", seed)
    if value is not None:
        row: dict[str, Any] = {"task": task.name, "model": CHANCE, "shots": 0, "context": "none"}
        rows.append(row | {"metric": task.metrics[0], "value": value, "low": value, "high": value, "n": len(items),
                           "question_type": None, "baseline": True, "split": task.split, "seed": seed})  # fmt: skip
    return rows


def _trained(task: Task, items: Sequence[Item], train: Sequence[Item], seed: int) -> list[Row]:
    """The two baselines that know the training split's answers."""
    said = list(map(cache(_common), (item.answers for item in train)))  # votes like these come again and again
    majority = _common(said)
    rows = _rows(task, items, [majority] * len(items), MAJORITY, "none", seed)
    if any(item.fields for item in items):
        by_text: dict[str, list[str]] = defaultdict(list)
        for text, answer in zip(_texts(task, train), said, strict=True):
            by_text[text].append(answer)
        guess = {text: _common(answers) for text, answers in by_text.items()}
        predictions = [guess.get(text, majority) for text in _texts(task, items)]
        rows += _rows(task, items, predictions, QUESTION_ONLY, "text-only", seed)
    return rows


def chance(task: Task, items: Sequence[Item]) -> float | None:
    """What a blind guess scores: the task's figure or, among candidates, one over their number."""
    is_choice = task.decoding.method in ("rank", "cloze") or task.decoding.constrained
    if task.chance is not None or not is_choice or task.metrics[0] not in ("accuracy", "exact_match"):
        return task.chance
    sizes = [len(item.candidate_images or item.candidates or task.decoding.candidates) for item in items]
    return sum(1 / size for size in sizes) / len(sizes) if all(sizes) else None


def attach(rows: Sequence[Row], baselines: Sequence[Row]) -> None:
    """Write beside each of the model's rows what the baselines, and shuffled images, score in the same metric."""
    shuffled = {(row["task"], row["model"], row["shots"], row["metric"]): row["value"]
                for row in rows if row["context"] == "shuffled"}  # fmt: skip
    for row in rows:
        beside = {
            other["model"]: other["value"]
            for other in baselines
            if other["task"] == row["task"] and other["metric"] in (row["metric"], _whole(other, row))
        }
        key = (row["task"], row["model"], row["shots"], row["metric"])
        if row["context"] == "image+text" and key in shuffled:
            beside = {SHUFFLED: shuffled[key]} | beside
        row["baselines"] = beside


def _whole(baseline: Row, row: Row) -> str:
    """The metric without a question type, where the baseline holds for every type: a blind guess."""
    return str(row["metric"]).partition(":")[0] if baseline["model"] == CHANCE else ""


def _rows(
    task: Task, items: Sequence[Item], predictions: Sequence[str], name: str, context: str, seed: int
) -> list[Row]:
    labels = {"model": name, "shots": 0, "context": context, "baseline": True}
    return make_rows(task, items, predictions, labels, seed)[0]


def _common(answers: Sequence[str]) -> str:
    return Counter(answers).most_common(1)[0][0]


def _texts(task: Task, items: Sequence[Item]) -> list[str]:
    """What each item says without its images; a question that comes again is written once."""
    own = [tuple(item.fields.items()) for item in items]
    asked = dict(zip(own, items, strict=True))
    written = {
        fields: prompts.build(task, item, context="text-only", extra={"rationale": ""}).text
        for fields, item in asked.items()
    }
    return [written[fields] for fields in own]
