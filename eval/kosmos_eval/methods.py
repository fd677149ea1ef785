"""How each decoding method asks: the questions that an item makes, and the answer that their replies are.

A question is a prompt to write behind, or a text whose likelihood is wanted; ``METHODS`` holds the two functions of
each method, and :func:`answers` puts the questions of many items and yields answers batch by batch, so that a killed
run loses one batch at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import exp, log
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from kosmos.segments import Phrase

from . import prompts
from .items import Item, stable_hash
from .model import EvaluatedModel
from .prompts import Likelihood, Pair, Prompt, candidates, continuation, continuations
from .tasks import CANDIDATE, Task

# How many items with a prompt for each candidate are ranked between two writes of the log.
_ITEMS_OF_PROMPTS = 32


@dataclass(frozen=True)
class Answer:
    """What the model says to an item, the scores of what it could choose from, and the phrases that it put boxes to."""

    text: str
    scores: tuple[float, ...] = ()
    phrases: tuple[Phrase, ...] = ()


class Method(NamedTuple):
    """One way to answer.

    Attributes:
        questions: makes the questions of an item, whose prompt is given: prompts, or pairs.
        answer: makes the answer of their replies: texts, or likelihoods.
    """

    questions: Callable[[Task, Item, Prompt], Sequence[Prompt | Pair]]
    answer: Callable[[Task, Item, Sequence[Any]], Answer]


def answers(
    model: EvaluatedModel,
    task: Task,
    items: Sequence[Item],
    built: Sequence[Prompt],
    seed: int,
    others: Sequence[Path] = (),
    keys: Sequence[str] | None = None,
) -> Iterator[dict[int, Answer]]:
    """Ask about all items; answers by the item's place, as soon as all replies for it are there.

    Args:
        model: who is asked.
        task: says by which method.
        items: what is asked about.
        built: the prompt of each.
        seed: of sampling.
        others: images of other items, for a marginal likelihood.
        keys: of the draws of each; default the items' ids.
    """
    keys = [item.id for item in items] if keys is None else keys
    method, size = METHODS[task.decoding.method], max(len(items), 1)
    if any(item.candidate_images for item in items) or CANDIDATE in task.prompt.template:
        method, size = RANK_PROMPTS, _ITEMS_OF_PROMPTS
    elif task.decoding.normalisation == "marginal":
        method = Method(partial(_rank_pairs, others=others), _rank_answer)
    if task.prompt.others:
        if method is RANK_PROMPTS:
            raise ValueError(
                f"task {task.name}: prompt.others: where pictures are the candidates one template is asked"
            )
        method = _over_templates(method)
    for start in range(0, len(items), size):
        part = slice(start, start + size)
        for batch in _ask(model, task, method, items[part], built[part], seed, keys[part]):
            yield {start + place: answer for place, answer in batch.items()}


def _ask(
    model: EvaluatedModel,
    task: Task,
    method: Method,
    items: Sequence[Item],
    built: Sequence[Prompt],
    seed: int,
    keys: Sequence[str],
) -> Iterator[dict[int, Answer]]:
    """Put all questions about some items together; the replies to one item may come in several batches."""
    questions = [method.questions(task, item, prompt) for item, prompt in zip(items, built, strict=True)]
    owners = [(place, number) for place, own in enumerate(questions) for number in range(len(own))]
    asked: list[Any] = [question for own in questions for question in own]
    batches: Iterator[Mapping[int, Any]]
    if isinstance(asked[0], Prompt):
        seeds = [stable_hash("sample", seed, task.name, keys[place]) for place, _ in owners]
        batches = model.generate(asked, task.decoding, seeds, answer_ends(model, task, asked))
    else:
        batches = model.log_likelihoods(asked)
    replies: list[list[Any]] = [[None] * len(own) for own in questions]
    left = [len(own) for own in questions]
    for batch in batches:
        done = {}
        for at, reply in batch.items():
            place, number = owners[at]
            replies[place][number] = reply
            left[place] -= 1
            if not left[place]:
                done[place] = method.answer(task, items[place], replies[place])
        yield done


def _over_templates(method: Method) -> Method:
    """The method asked by each template of a prompt in turn; a candidate's score is the mean of its scores."""

    def questions(task: Task, item: Item, prompt: Prompt) -> list[Prompt | Pair]:
        own = replace(prompt, others=())  # so that equal prompts of several items are equal, and read once
        return [question for one in (own, *prompt.others) for question in method.questions(task, item, one)]

    def answer(task: Task, item: Item, replies: Sequence[Any]) -> Answer:
        size = len(replies) // (1 + len(task.prompt.others))
        each = [method.answer(task, item, replies[at : at + size]).scores for at in range(0, len(replies), size)]
        return _best(candidates(task, item), [fmean(scores) for scores in zip(*each, strict=True)])

    return Method(questions, answer)


def answer_ends(model: EvaluatedModel, task: Task, asked: Sequence[Prompt]) -> frozenset[int]:
    """The tokens that end an answer: behind demonstrations also what ends theirs, whose form the model goes on in."""
    shown = any(prompt.demonstrations for prompt in asked)
    return model.runner.ends_behind(prompts.separator(task)) if shown else model.runner.ends


def _rank_pairs(task: Task, item: Item, prompt: Prompt, others: Sequence[Path] = ()) -> list[Pair]:
    """Each candidate behind the prompt and, to be compared with, behind prompts that say nothing of the item."""
    heads = [prompt]
    if task.decoding.normalisation == "unconditional":
        heads.append(Prompt((task.decoding.bare_prompt,)))
    heads += [prompts.with_last_image(prompt, image) for image in others]  # a prompt without images stays the same
    return [Pair(head, text) for head in heads for text in continuations(task, item)]


def _rank_answer(task: Task, item: Item, replies: Sequence[Likelihood]) -> Answer:
    """The likeliest candidate, without what a cloze puts after it."""
    texts, normalisation = continuations(task, item), task.decoding.normalisation
    nats = [reply.nats for reply in replies]
    if normalisation == "mean":
        nats = [reply.nats / reply.tokens for reply in replies]
    elif normalisation == "byte":
        nats = [value / len(text.strip().encode()) for value, text in zip(nats, texts, strict=True)]
    elif normalisation in ("unconditional", "marginal"):
        own, *compared = (nats[at : at + len(texts)] for at in range(0, len(nats), len(texts)))
        nats = [value - _log_mean_exp(others) for value, *others in zip(own, *compared, strict=True)]
    return _best(candidates(task, item), nats)


def _log_mean_exp(nats: Sequence[float]) -> float:
    """The log of the mean likelihood, from log-likelihoods; the largest is taken out so that none underflows."""
    largest = max(nats)
    return largest + log(sum(exp(value - largest) for value in nats) / len(nats))


def _prompt_pairs(task: Task, item: Item, prompt: Prompt) -> list[Pair]:
    """One prompt a candidate, which is an image or words within it, and the same text behind each."""
    same = continuations(task, item)[0]
    if item.candidate_images:
        variants = [prompts.with_last_image(prompt, image) for image in item.candidate_images]
    else:
        words = [prompts.wording(task, item, candidate) for candidate in candidates(task, item)]
        variants = [prompts.with_candidate(prompt, text) for text in words]
    return [Pair(variant, same) for variant in variants]


def _prompt_answer(task: Task, item: Item, replies: Sequence[Likelihood]) -> Answer:
    """The candidate whose prompt makes the text likeliest; of images its number, from 1."""
    names = [str(number) for number in range(1, len(item.candidate_images) + 1)] or candidates(task, item)
    return _best(names, [reply.nats for reply in replies])


def _best(names: Sequence[str], scores: Sequence[float]) -> Answer:
    return Answer(names[max(range(len(scores)), key=scores.__getitem__)], tuple(scores))


WRITE = Method(
    lambda task, item, prompt: [prompt],
    lambda task, item, replies: Answer(str(replies[0]), phrases=getattr(replies[0], "phrases", ())),
)
RANK_PROMPTS = Method(_prompt_pairs, _prompt_answer)
METHODS = {
    "greedy": WRITE,
    "beam": WRITE,
    "sample": WRITE,
    "rank": Method(_rank_pairs, _rank_answer),
    "cloze": Method(
        lambda task, item, prompt: [Pair(prompt, text.strip(), True) for text in continuations(task, item)],
        lambda task, item, replies: _best(candidates(task, item), [reply.nats for reply in replies]),
    ),
    "likelihood": Method(
        lambda task, item, prompt: [
            Pair(prompt, continuation(task, item, item.answers[0]))
            if task.prompt.template
            else Pair(None, item.answers[0])
        ],
        lambda task, item, replies: Answer("", (replies[0].nats,)),
    ),
}
