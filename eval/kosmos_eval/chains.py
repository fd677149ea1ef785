"""Chains of thought: what the model writes to an item's first prompt, and the answer that is asked behind it.

Self-consistency (Wang and others 2022, arXiv 2203.11171): several rationales are sampled, an answer is asked behind
each, and the commonest wins. A rationale depends on the item, the seed and its number, never on the batch or the rank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import methods, prompts
from .items import Item, stable_hash
from .methods import Answer
from .model import EvaluatedModel, in_order
from .prompts import Prompt
from .tasks import Decoding, Task


@dataclass(frozen=True)
class Asked:
    """What came of one item.

    Attributes:
        prompt: the one behind which the answer was given.
        answer: the answer.
        samples: of a chain of thought each rationale, in the order of their numbers, with the answer behind it.
        chosen: which of them ``answer`` is.
    """

    prompt: Prompt
    answer: Answer
    samples: tuple[tuple[str, Answer], ...] = ()
    chosen: int = 0


def ask(
    model: EvaluatedModel,
    task: Task,
    items: Sequence[Item],
    built: Sequence[Prompt],
    seed: int,
    others: Sequence[Path] = (),
) -> Iterator[dict[int, Asked]]:
    """Ask about all items, as :func:`.methods.answers` does; of a task with a rationale for that first.

    Chains come by so many items as make a batch, so that a killed run loses no more.
    """
    if not task.rationale:
        for batch in methods.answers(model, task, items, built, seed, others):
            yield {place: Asked(built[place], answer) for place, answer in batch.items()}
        return
    for start in range(0, len(items), model.batch_rows):
        part = slice(start, start + model.batch_rows)
        found = _chained(model, task, items[part], built[part], seed, others)
        yield {start + place: asked for place, asked in enumerate(found)}


def _chained(
    model: EvaluatedModel,
    task: Task,
    items: Sequence[Item],
    built: Sequence[Prompt],
    seed: int,
    others: Sequence[Path],
) -> Iterator[Asked]:
    """All rationales of some items, all answers behind them, and the vote on each item."""
    count = task.chain.samples
    owners = [place for place in range(len(items)) for _ in range(count)]
    keys = [f"{items[place].id} {at % count}" if count > 1 else items[place].id for at, place in enumerate(owners)]
    texts = rationales(model, task, [built[place] for place in owners], keys, seed)
    seconds = [built[place].then or built[place] for place in owners]
    filled = [prompts.with_rationale(second, text) for second, text in zip(seconds, texts, strict=True)]
    given = in_order(methods.answers(model, task, [items[place] for place in owners], filled, seed, others, keys))
    for first in range(0, len(owners), count):
        own = range(first, first + count)
        chosen = vote([given[at].text for at in own])
        samples = tuple((texts[at], given[at]) for at in own)
        yield Asked(filled[first + chosen], given[first + chosen], samples, chosen)


def rationales(
    model: EvaluatedModel, task: Task, chosen: Sequence[Prompt], keys: Sequence[str], seed: int
) -> list[str]:
    """A free text behind each prompt: greedy if a chain has one, else sampled with the draws of ``keys`` and seed."""
    decoding = Decoding(max_new_tokens=task.rationale_tokens)
    if task.chain.samples > 1:
        decoding = Decoding("sample", task.rationale_tokens, temperature=task.chain.temperature)
    seeds = [stable_hash("rationale", seed, task.name, key) for key in keys]
    return in_order(model.generate(chosen, decoding, seeds, methods.answer_ends(model, task, chosen)))


def vote(answers: Sequence[str]) -> int:
    """The place of the commonest answer; of several that are as common, the one that came first.

    Answers count as equal where their texts are, white space at their ends aside.
    """
    texts = [answer.strip() for answer in answers]
    counts = Counter(texts)
    return max(range(len(texts)), key=lambda place: counts[texts[place]])  # max() takes the first


def another(items: Sequence[Item], seed: int, name: str) -> dict[str, Item]:
    """For each item's id another item, in a fixed order that the seed decides.

    Raises:
        ValueError: there is one item only.
    """
    if len(items) < 2:
        raise ValueError(f"task {name}: chain.of=another needs two items, the split has {len(items)}")
    ring = sorted(items, key=lambda item: stable_hash("another", seed, name, item.id))
    return {item.id: other for item, other in zip(ring, [*ring[1:], ring[0]], strict=True)}
