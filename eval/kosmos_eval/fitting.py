"""Prompts that fit into the model: demonstrations are left out first, then words of a field that the task lets go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from . import prompts
from .items import Item
from .prompts import Prompt, candidates, continuations
from .runner import Runner
from .tasks import CANDIDATE, Task


def fitted(
    runner: Runner, task: Task, item: Item, shots: Sequence[Item], context: str, images: Sequence[Path]
) -> Prompt:
    """One item's prompt, which leaves room for its answer.

    Args:
        runner: knows what the model reads, and how long texts are.
        task: the wording.
        item: what is asked.
        shots: demonstrations, of which the first may be left out.
        context: one of ``CONTEXTS``.
        images: the item's, or those shown in their place.

    Raises:
        ValueError: the prompt is too long whatever is left out.
    """
    given = (*images, *item.candidate_images[:1])
    shown, field = item, task.prompt.shorten
    prompt, excess = _built(runner, task, shown, shots, context, given)
    while excess > 0 and (shots or shown.fields.get(field, "").strip()):
        if shots:
            shots = shots[1:]
        else:
            words = shown.fields[field].split()
            shown = replace(item, fields=item.fields | {field: " ".join(words[: -max(1, excess // 4)])})
        prompt, excess = _built(runner, task, shown, shots, context, given)
    if excess > 0:
        raise ValueError(
            f"task {task.name}, item {item.id}: prompt and answer take {excess + runner.max_length} tokens, the model "
            f"{runner.max_length}; leave the item out, or let a field lose its end (prompt.shorten)"
        )
    if shown is item:
        return prompt
    return replace(prompt, shortened=True, then=prompt.then and replace(prompt.then, shortened=True))


def _built(
    runner: Runner, task: Task, item: Item, shots: Sequence[Item], context: str, images: Sequence[Path]
) -> tuple[Prompt, int]:
    """A prompt, and how many tokens it and its answer have too many; of two prompts the longer one counts."""
    room = _answer_room(runner, task, item)
    if not task.rationale:
        prompt = prompts.build(task, item, shots, context, images)
        return prompt, runner.length(prompt) + room - runner.max_length
    first = prompts.build_chain(task, item, shots, context, images)
    second = prompts.with_rationale(first.then or first, "")
    longest = max(runner.length(first), runner.length(second) + room)
    return first, longest + task.rationale_tokens - runner.max_length


def _answer_room(runner: Runner, task: Task, item: Item) -> int:
    """Tokens that an item's answer may take, its longest candidate where it is chosen."""
    if task.decoding.method == "likelihood" and task.prompt.template:
        return len(runner.text_ids(prompts.continuation(task, item, item.answers[0])))
    if task.decoding.method not in ("rank", "cloze"):
        return task.decoding.max_new_tokens
    room = max(len(runner.text_ids(text)) for text in continuations(task, item))
    if CANDIDATE in task.prompt.template:
        room += max(len(runner.text_ids(prompts.wording(task, item, text))) for text in candidates(task, item))
    return room
