"""Solved examples for few-shot prompts, drawn without ever touching the evaluated split.

Each item's draw is a hash of (seed, task, item id), so it is the same for any batch size, number of ranks, limit or
resumed run; the k-shot prompt holds the first k of one sequence, so shots are nested. An example whose image (or,
without images, whose text) also occurs in the evaluated split is passed over and counted: identical content leaks the
answer whatever the file names say.

Sources: Flamingo (random and RICES demonstrations), OpenFlamingo's evaluation, whose draws change with the number of
GPUs; these do not.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from .items import Item, content_hash, stable_hash
from .tasks import Task

# Features of images (N, D), one vector each, for RICES.
EmbedImages = Callable[[Sequence[Path]], Tensor]
_NEAREST = 256  # of the pool are kept for an image
_QUERIES = 256  # compared with the whole pool at a time


class DemonstrationPool:
    """The examples of one task and how they are drawn.

    Args:
        task: says method and seed.
        pool: items of the demonstrations' split.
        evaluated: items of the evaluated split, whose content must not occur in a demonstration.
        embed: image features, needed for ``rices``.

    Raises:
        ValueError: method ``rices`` without images or without ``embed``.
    """

    def __init__(
        self, task: Task, pool: Sequence[Item], evaluated: Sequence[Item], embed: EmbedImages | None = None
    ) -> None:
        self.task = task
        self.pool = [item for item in pool if item.answers]
        self._evaluated = {content_key(item) for item in evaluated}
        self.leaking: set[str] = set()
        self._by_group: dict[str, list[str]] = {}
        self._nearest: Mapping[tuple[Path, ...], list[int]] = {}
        if task.demonstrations.method == "rices":
            if embed is None or not all(item.images for item in [*self.pool, *evaluated]):
                raise ValueError(f"task {task.name}: demonstrations.method rices needs images in every item")
            self._nearest = _nearest_items(self.pool, evaluated, embed)

    def draw(self, item: Item, shots: int) -> list[Item]:
        """``shots`` demonstrations for an item, in prompt order.

        Raises:
            ValueError: the pool holds fewer usable examples.
        """
        drawn: list[Item] = []
        images: set[str] = set()
        for example in self._order(item):
            if len(drawn) == shots:
                break
            key = content_key(example)
            if key in self._evaluated:
                self.leaking.add(example.id)
            elif key not in images:
                images.add(key)
                drawn.append(example)
        if len(drawn) < shots:
            source = f"item {item.id}" if self.is_own else f"split {self.task.demonstrations.split!r}"
            raise ValueError(
                f"task {self.task.name}: {shots} demonstrations wanted, but {source} has {len(drawn)} usable ones "
                f"({len(self.leaking)} share content with the evaluated split)"
            )
        drawn = drawn[::-1] if self.task.demonstrations.method == "rices" else drawn
        return self._relabelled(item, drawn)

    def _relabelled(self, item: Item, drawn: Sequence[Item]) -> list[Item]:
        """The demonstrations with the answers that ``demonstrations.labels`` asks for.

        Random ones are drawn in the order of the examples, so that shots stay nested; ``shuffled`` hands answers round.
        """
        options, count = self.task.demonstrations, len(drawn)
        if options.labels is True or (options.labels == "shuffled" and count < 2):
            return list(drawn)
        draw = random.Random(stable_hash("labels", options.seed, self.task.name, item.id))
        if options.labels == "shuffled":
            others = draw.randrange(1, count)
            answers = [drawn[(place + others) % count].answers[0] for place in range(count)]
        else:
            answers = [draw.choice(self._labels(example, item)) for example in drawn]
        return [replace(example, answers=(answer,)) for example, answer in zip(drawn, answers, strict=True)]

    def _labels(self, example: Item, item: Item) -> Sequence[str]:
        """The answers that an example might have had: candidates, or what examples of its question type say."""
        own = item.candidates if self.is_own else ()
        if choices := example.candidates or own or self.task.decoding.candidates:
            return choices
        if example.group not in self._by_group:
            alike = item.demonstrations if self.is_own else self.pool
            answers = sorted({one.answers[0] for one in alike if one.group == example.group})
            if self.is_own:  # they are the item's alone
                return answers
            self._by_group[example.group] = answers
        return self._by_group[example.group]

    @property
    def is_own(self) -> bool:
        """Whether the items bring their examples."""
        return self.task.demonstrations.method == "own"

    def _order(self, item: Item) -> Iterable[Item]:
        options = self.task.demonstrations
        if self.is_own:
            return item.demonstrations
        if options.method == "rices":
            return (self.pool[index] for index in self._nearest[item.images])
        who = item.id if options.method == "random" else "all items"
        generator = random.Random(stable_hash("demonstrations", options.seed, self.task.name, who))
        wanted = min(len(self.pool), 256)  # far more than any number of shots, so that leaks and repeats can be skipped
        return (self.pool[index] for index in generator.sample(range(len(self.pool)), wanted))


def content_key(item: Item) -> str:
    """What an item is made of: the content of its images, or its text if it has none."""
    if item.images:
        return "|".join(content_hash(path) for path in item.images)
    return "|".join(f"{name}={value}" for name, value in sorted(item.fields.items()))


def _nearest_items(
    pool: Sequence[Item], evaluated: Sequence[Item], embed: EmbedImages
) -> dict[tuple[Path, ...], list[int]]:
    """For each evaluated image the pool's items by cosine similarity of the first image, ties by position."""
    first: dict[Path, int] = {}  # of several items of an image the first
    for index, item in enumerate(pool):
        first.setdefault(item.images[0], index)
    places, queries = list(first.values()), list(dict.fromkeys(item.images for item in evaluated))
    queries_QW, pool_PW = _unit(embed([images[0] for images in queries])), _unit(embed(list(first)))
    nearest: list[list[int]] = []
    for chunk_CW in queries_QW.split(_QUERIES):  # all similarities of VQAv2 at once would take 13 GB
        similarity_CP = chunk_CW @ pool_PW.T
        nearest += similarity_CP.argsort(dim=1, descending=True, stable=True)[:, :_NEAREST].tolist()
    return {images: [places[image] for image in row] for images, row in zip(queries, nearest, strict=True)}


def _unit(features_ND: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features_ND.float(), dim=-1)
