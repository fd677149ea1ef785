"""Items of a task as documents to learn from: the prompt is read, the answer is written, in the evaluator's own words.

Where the answer is chosen (``rank``, ``cloze``) it carries its choices, which the objective ``cloze`` learns from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from kosmos.segments import Token
from kosmos_data import Document, Image, Text
from kosmos_data.document import Segment, safe_key

from . import prompts
from .items import Item
from .tasks import BLANK, Task


def documents(task: Task, items: Iterable[Item]) -> Iterator[Document]:
    """Make one document of each item, without demonstrations.

    Raises:
        ValueError: a prompt with a special token, which no document can spell, or that brings candidate images.
    """
    for item in items:
        if item.candidate_images:
            raise ValueError(f"task {task.name}: its candidates are images, of which no document to learn from is made")
        asked = [_segment(task, segment) for segment in prompts.build(task, item).segments]
        answer = _answer(task, item)
        yield Document(
            safe_key(item.id), _filled(asked, answer) if task.decoding.method == "cloze" else [*asked, answer]
        )


def _segment(task: Task, segment: prompts.Segment) -> Segment:
    """A part of a prompt as a segment that is read."""
    if isinstance(segment, Path):
        return Image(segment.read_bytes())
    if isinstance(segment, Token):
        raise ValueError(f"task {task.name}: its prompt has the token {segment.text!r}, which no document can spell")
    return Text(segment, supervised=False) if isinstance(segment, str) else segment


def _answer(task: Task, item: Item) -> Text:
    """The first right answer, among the candidates that are not right as well."""
    right = prompts.continuation(task, item, item.answers[0])
    if task.decoding.method not in ("rank", "cloze"):
        return Text(right)
    wrong = [prompts.continuation(task, item, one) for one in prompts.candidates(task, item) if one not in item.answers]
    choices = [right, *wrong]
    if task.decoding.method == "cloze":
        choices = [text.strip() for text in choices]
    return Text(choices[0], choices=tuple(dict.fromkeys(choices)))


def _filled(asked: list[Segment], answer: Text) -> list[Segment]:
    """The segments with the answer in the place of the blank."""
    filled: list[Segment] = []
    for segment in asked:
        if isinstance(segment, Text) and BLANK in segment.text:
            before, behind = segment.text.split(BLANK)
            around = [Text(text, supervised=False) if text else None for text in (before, behind)]
            filled += [one for one in (around[0], answer, around[1]) if one is not None]
        else:
            filled.append(segment)
    return filled
