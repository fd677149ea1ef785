"""A task with its data: what can be read, and refused, before a model is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from . import metrics
from .demonstrations import DemonstrationPool, EmbedImages
from .items import Item, content_hash, stable_hash
from .metrics.strings import accuracy
from .readers import load_items
from .tasks import CONTEXTS, Task

_CHOICES = ("rank", "cloze")


class TaskData:
    """The evaluated items of a task, and the examples for its prompts.

    Args:
        task: the task; where neither it nor its items name candidates, the answers of the split become them.
        folder: what the task's paths are relative to.

    Raises:
        FileNotFoundError, ValueError: missing or malformed data; an item whose answer cannot be chosen.
    """

    def __init__(self, task: Task, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.items = load_items(task, self.folder, task.split)
        self.task = _with_candidates(task, self.items)
        _check_answers(self.task, self.items)
        self._pool: DemonstrationPool | None = None

    @cached_property
    def identity(self) -> dict[str, str]:
        """What a row says of its data: a fingerprint of the split's items, and the folder that they were read from."""
        items = (
            (item.id, sorted(item.fields.items()), item.answers, [path.name for path in item.images], item.candidates)
            for item in self.items
        )
        return {"data": hashlib.sha256(repr(list(items)).encode()).hexdigest()[:12], "folder": str(self.folder)}

    @cached_property
    def train(self) -> list[Item]:
        """Items of the demonstrations' split, read when something needs them; empty if there is none here."""
        split, files = self.task.demonstrations.split, self.task.dataset
        if not split:
            return []
        own, other = (files.annotations.format(split=name) for name in (self.task.split, split))
        if not (self.folder / other).exists() or (own == other and files.format != "karpathy"):  # one file for all
            return []
        return load_items(self.task, self.folder, split)

    def pool(self, embed: EmbedImages | None = None) -> DemonstrationPool:
        """The demonstrations; ``embed`` is needed by method ``rices``, at the first call."""
        if self._pool is None:
            self._pool = DemonstrationPool(self.task, self.train, self.items, embed)
        return self._pool

    @cached_property
    def other_images(self) -> list[Path]:
        """Images of the demonstrations' split, drawn by hash, for a task that normalises by them; else none.

        Raises:
            ValueError: the split has none, or an item has not one image.
        """
        if self.task.decoding.normalisation != "marginal":
            return []
        shown = {item.images[0] for item in self.train if item.images}
        if not shown or any(len(item.images) != 1 for item in self.items):
            raise ValueError(
                f"task {self.task.name}: decoding.normalisation=marginal puts images of "
                f"demonstrations.split={self.task.demonstrations.split!r} ({len(shown)} here) in the place of each "
                "item's one; use normalisation=sum"
            )
        return sorted(shown, key=content_hash)[: self.task.decoding.other_images]

    def subset(self, limit: int | None) -> list[Item]:
        """``limit`` items chosen by hash, in file order, the same ones for every model; all if there are no more.

        Raises:
            ValueError: a limit below 1.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"limit {limit} must be at least 1")
        if limit is None or limit >= len(self.items):
            return self.items
        order = sorted(range(len(self.items)), key=lambda i: stable_hash("limit", self.task.name, self.items[i].id))
        chosen = set(order[:limit])
        return [item for i, item in enumerate(self.items) if i in chosen]

    def check(self, shots: Sequence[int], contexts: Sequence[str]) -> None:
        """Refuse what cannot work before anything is computed.

        Raises:
            ValueError: an unknown context, images to shuffle that are not there, too few demonstrations, a metric
                without its Java program.
        """
        metrics.check_available(self.task.metrics)
        _ = self.other_images  # refuses a task that has none
        self._check_references()
        for context in contexts:
            if context not in CONTEXTS:
                raise ValueError(f"unknown context {context!r}; choose from {', '.join(CONTEXTS)}")
            if context == "shuffled" and not any(item.images for item in self.items):
                raise ValueError(f"task {self.task.name} has no images, sounds or videos to shuffle")
        if min(shots, default=0) < 0:
            raise ValueError(f"{min(shots)} shots: the number of demonstrations cannot be negative")
        if max(shots, default=0) > 0:
            self._check_demonstrations(max(shots))

    def _check_references(self) -> None:
        """A person's own beginnings may have nothing that a text could be compared with."""
        needing = [name for name in self.task.metrics if name not in metrics.WRITING_METRICS]
        without = [item.id for item in self.items if not item.answers]
        if needing and without:
            raise ValueError(
                f"task {self.task.name}: {', '.join(needing)} needs a known continuation, which {len(without)} of "
                f"{len(self.items)} items lack (first: {without[0]}); --set metrics={','.join(metrics.WRITING_METRICS)}"
            )

    def _check_demonstrations(self, count: int) -> None:
        task = self.task
        if task.decoding.method == "cloze":
            raise ValueError(f"task {task.name}: method cloze fills one blank; it takes no demonstrations")
        if task.demonstrations.method != "own" and not self.train:
            wanted = (
                f"split {task.demonstrations.split!r} has none here" if task.demonstrations.split else "it has none"
            )
            raise ValueError(f"task {task.name}: {count} shots need a demonstrations.split with data; {wanted}")
        if task.demonstrations.method != "rices":  # which asks the model what is near
            self.pool().draw(min(self.items, key=lambda item: len(item.demonstrations)), count)


def _with_candidates(task: Task, items: Sequence[Item]) -> Task:
    """The task with the split's answers as candidates, where it needs some and nothing names them."""
    is_choice = task.decoding.constrained or task.decoding.method in _CHOICES
    if not is_choice or task.decoding.candidates or all(item.candidates for item in items):
        return task
    names = sorted({answer for item in items for answer in item.answers})
    return replace(task, decoding=replace(task.decoding, candidates=names))


def _check_answers(task: Task, items: Sequence[Item]) -> None:
    """A right answer that is none of the choices would count as a mistake of the model."""
    if task.decoding.method not in _CHOICES or "accuracy" not in task.metrics:
        return
    for item in items:
        choices: Sequence[str] = item.candidates or task.decoding.candidates
        if item.candidate_images:
            choices = [str(number) for number in range(1, len(item.candidate_images) + 1)]
        if not any(accuracy(choice, item.answers) for choice in choices):
            raise ValueError(
                f"task {task.name}, item {item.id}: its answer {item.answers[0]!r} is none of the "
                f"{len(choices)} candidates ({', '.join(choices[:8])}{', …' * (len(choices) > 8)})"
            )
