"""From an item and its demonstrations to the segments that the model reads.

Layout (KOSMOS-1, section 2.1 and figure 7): ``<s> <image> … </image> Question: … Answer:`` for zero-shot; each
demonstration is the same with its answer, one a line, before it.

Text between ``<span>`` and ``</span>`` of a template is read by the bidirectional text encoder, as MetaLM does with
the inputs of its demonstrations (section 3.6: inputs encoded, labels as plain text, separator ``</s>``).

Contexts answer "does the model look?": ``shuffled`` gives every item the image of another one, ``text-only`` leaves
images out, ``none`` leaves out the item's text as well, which shows the model's prior. Demonstrations keep their own
images in ``shuffled`` and lose them in ``text-only``. What is said of images holds for sounds (``<audio>``) and videos
(``<video>``) too.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from kosmos.grounding import BEGIN as GROUNDING
from kosmos.segments import Audio, Image, Span, Token, Video

from .items import Item, content_hash, stable_hash
from .tasks import CANDIDATE, CONTEXTS, FILE_MARKS, IMAGE_MARK, IMAGES_MARK, RATIONALE, Task

Segment = str | Path | Audio | Video | Span | Token  # text, an image file, another file, encoded text, a special token
_ENCODED, _ENCODED_END = Span.marks
_MARKS = re.compile(f"({'|'.join(FILE_MARKS)}|{_ENCODED}.*?{_ENCODED_END})", re.DOTALL)


@dataclass(frozen=True)
class Prompt:
    """What is fed to the model for one item.

    Attributes:
        segments: texts and images in order; ``<s>`` comes before them.
        cuts: segment counts after which the beginning may be shared with other prompts (demonstrations; query image).
        demonstrations: ids of the examples in it.
        shortened: whether a field lost its end because the prompt was too long.
        then: of a chain of thought: the second prompt, with the mark ``{rationale}`` where this one's answer goes.
        others: the same by the task's other templates.
    """

    segments: tuple[Segment, ...]
    cuts: tuple[int, ...] = ()
    demonstrations: tuple[str, ...] = ()
    shortened: bool = False
    then: Prompt | None = None
    others: tuple[Prompt, ...] = ()

    @cached_property
    def text(self) -> str:
        """The prompt as one string with ``<image>`` marks, for people and logs."""
        return "".join(_shown(segment) for segment in self.segments)

    @property
    def shots(self) -> int:
        return len(self.demonstrations)

    @property
    def images(self) -> list[Path]:
        return [segment for segment in self.segments if isinstance(segment, Path)]

    @property
    def files(self) -> list[Path]:
        """Images, sounds and videos."""
        return [path for segment in self.segments if (path := file_of(segment))]


class Pair(NamedTuple):
    """A text and the place that it has: behind the prompt, in the prompt's blank, or (without a prompt) alone."""

    prompt: Prompt | None
    text: str
    in_blank: bool = False


class Likelihood(NamedTuple):
    """Log-probability of a text in nats, the number of its tokens, and whether greedy decoding would write it.

    Of a text that stands alone or in a blank only the first is known.
    """

    nats: float
    tokens: int = 0
    greedy: bool = False


def file_of(segment: Segment) -> Path | None:
    """The file of an image, a sound or a video; None: the segment is something else."""
    file = getattr(segment, "data", segment)
    return file if isinstance(file, Path) else None


def build(
    task: Task,
    item: Item,
    demonstrations: Sequence[Item] = (),
    context: str = "image+text",
    images: Sequence[Path] | None = None,
    extra: Mapping[str, str] | None = None,
) -> Prompt:
    """The prompt of one item; of a task with a rationale the second one, with a mark where the rationale goes.

    Args:
        context: one of ``CONTEXTS``.
        images: instead of the item's own (for ``shuffled``).
        extra: more fields for the template.

    Raises:
        ValueError: an unknown context, a template field that the item lacks, or a number of images that does not match.
    """
    if context not in CONTEXTS:
        raise ValueError(f"unknown context {context!r}; choose from {', '.join(CONTEXTS)}")
    segments: list[Segment] = []
    for shot in demonstrations:
        right = {"candidate": wording(task, shot, shot.answers[0]), "rationale": rationale(shot)}
        segments += _fill(task, shot, task.prompt.template, shot.images, context, right)
        segments += _end_turn(continuation(task, shot, shot.answers[0]), separator(task))
    open_places = {"candidate": CANDIDATE} | ({"rationale": RATIONALE} if task.rationale else {}) | dict(extra or {})
    own = _fill(task, item, task.prompt.template, images or item.images, context, open_places)
    own += [Token(GROUNDING)] if task.prompt.grounding else []
    return _joined(segments, own, item, demonstrations)


def build_chain(
    task: Task, item: Item, demonstrations: Sequence[Item], context: str, images: Sequence[Path] | None = None
) -> Prompt:
    """The first prompt of a chain of thought, which asks for the rationale; the second, of :func:`build`, is ``then``.

    Demonstrations whose data has a rationale stand before it with theirs; the others only before the second.
    """
    segments: list[Segment] = []
    shown = [shot for shot in demonstrations if rationale(shot)]
    places = {"candidate": CANDIDATE}
    for shot in shown:
        segments += _fill(task, shot, task.rationale, shot.images, context, places)
        segments += _end_turn(f" {rationale(shot)}", separator(task))
    own = _fill(task, item, task.rationale, images or item.images, context, places)
    return replace(_joined(segments, own, item, shown), then=build(task, item, demonstrations, context, images))


def rationale(item: Item) -> str:
    """The rationale that an item's data brings, in one line (a newline would end it); empty: none."""
    return " ".join(item.fields.get("rationale", "").split())


def _joined(segments: list[Segment], own: list[Segment], item: Item, demonstrations: Sequence[Item]) -> Prompt:
    """Demonstrations and the question, with the places after which beginnings are shared."""
    cuts = [len(segments)] if segments else []
    leading = next((i for i, segment in enumerate(own) if not file_of(segment)), len(own))
    if leading:
        cuts.append(len(segments) + leading)
    if item.candidate_images and own:  # the candidates' prompts agree up to the candidate, which is the last image
        last = max((i for i, segment in enumerate(own) if file_of(segment)), default=0)
        cuts.append(len(segments) + last)
    return Prompt(tuple(segments + own), tuple(dict.fromkeys(cuts)), tuple(shot.id for shot in demonstrations))


def with_last_image(prompt: Prompt, image: Path) -> Prompt:
    """The same prompt with another last image (the next candidate), sound or video; without any, the prompt itself."""
    places = [i for i, segment in enumerate(prompt.segments) if file_of(segment)]
    if not places:
        return prompt
    last = prompt.segments[places[-1]]
    shown = type(last)(image) if isinstance(last, Audio | Video) else image
    return replace(prompt, segments=(*prompt.segments[: places[-1]], shown, *prompt.segments[places[-1] + 1 :]))


def with_candidate(prompt: Prompt, words: str) -> Prompt:
    """The same prompt with a candidate's words in the place that the template leaves for them."""
    return _with_words(prompt, CANDIDATE, words)


def with_rationale(prompt: Prompt, words: str) -> Prompt:
    """The second prompt of a chain of thought with what was answered to the first."""
    return _with_words(prompt, RATIONALE, words)


def _with_words(prompt: Prompt, mark: str, words: str) -> Prompt:
    segments: list[Segment] = []
    for segment in prompt.segments:
        if isinstance(segment, Span):
            segment = Span(segment.text.replace(mark, words))
        segments.append(segment.replace(mark, words) if isinstance(segment, str) else segment)
    return replace(prompt, segments=tuple(segments))


def wording(task: Task, item: Item, answer: str) -> str:
    """The words that stand for an answer: its description in the item's data, its verbalizer, or itself.

    Raises:
        ValueError: ``decoding.described`` for an item whose data describes no candidates.
    """
    if task.decoding.described:
        if not item.wordings:
            raise ValueError(f'task {task.name}: decoding.described, but item {item.id} has no "wordings"')
        return item.wordings[item.candidates.index(answer)]
    return task.decoding.verbalizers.get(answer, answer)


def continuation(task: Task, item: Item, answer: str) -> str:
    """How an answer (or candidate) goes on after the prompt; it may be followed by more of the item's text (cloze)."""
    return task.prompt.answer.format_map({**item.fields, "answer": wording(task, item, answer)})


def continuations(task: Task, item: Item) -> list[str]:
    """The texts to rank for one item, as they follow the prompt.

    Raises:
        ValueError: neither the item nor the task has candidates.
    """
    return [continuation(task, item, text) for text in candidates(task, item)]


def candidates(task: Task, item: Item) -> Sequence[str]:
    """The answers to choose from, the item's own or the task's.

    Raises:
        ValueError: neither has any.
    """
    found = item.candidates or task.decoding.candidates
    if not found:
        raise ValueError(
            f"task {task.name}, item {item.id}: method {task.decoding.method} needs candidates in the item or the task"
        )
    return found


def _fill(
    task: Task, item: Item, template: str, images: Sequence[Path], context: str, extra: Mapping[str, str]
) -> list[Segment]:
    fields = {**item.fields, **extra}
    if context == "none":
        fields = dict.fromkeys(fields, "") | {"candidate": fields["candidate"]}
    template = template.replace(IMAGES_MARK, IMAGE_MARK * len(item.images))
    marks = sum(template.count(mark) for mark in FILE_MARKS)
    if context in ("text-only", "none"):
        for mark in FILE_MARKS:
            template = template.replace(mark, "")
    elif marks != len(images):
        named = [mark for mark in FILE_MARKS if mark in template] or [IMAGE_MARK]
        raise ValueError(
            f"task {task.name}: the template {template!r} has {marks} {' and '.join(named)} marks, "
            f"item {item.id} has {len(images)} {'images' if named == [IMAGE_MARK] else 'files'}"
        )
    segments: list[Segment] = []
    pictures = iter(images)
    for piece in _MARKS.split(template):
        if piece in FILE_MARKS:
            path = next(pictures)
            segments.append(path if FILE_MARKS[piece] is Image else FILE_MARKS[piece](path))
        elif piece.startswith(_ENCODED):
            segments.append(Span(_format(task, item, piece[len(_ENCODED) : -len(_ENCODED_END)], fields)))
        elif piece:
            segments.append(_format(task, item, piece, fields))
    return segments


def separator(task: Task) -> str:
    """What stands between demonstrations; where neither the task nor a checkpoint says it, the end of a line."""
    return "\n" if task.prompt.separator is None else task.prompt.separator


def with_separator(task: Task, own: str) -> Task:
    """The task with the checkpoint's ``own`` separator, if it names none."""
    return task if task.prompt.separator is not None else replace(task, prompt=replace(task.prompt, separator=own))


def by_template(task: Task) -> list[Task]:
    """The task once for each of its templates, which then stand alone."""
    templates = (task.prompt.template, *task.prompt.others)
    return [replace(task, prompt=replace(task.prompt, template=text, others=[])) for text in templates]


def _end_turn(answer: str, separator: str) -> list[Segment]:
    """A demonstration's answer and what separates it from the next; ``</s>`` becomes the token (MetaLM's separator)."""
    first, *rest = separator.split("</s>")
    segments: list[Segment] = [answer + first]
    for text in rest:
        segments += [Token("</s>"), text] if text else [Token("</s>")]
    return segments


def _shown(segment: Segment) -> str:
    if isinstance(segment, Path):
        return IMAGE_MARK
    if isinstance(segment, Audio | Video):
        return next(mark for mark, kind in FILE_MARKS.items() if isinstance(segment, kind))
    if isinstance(segment, Span):
        return f"{_ENCODED}{segment.text}{_ENCODED_END}"
    return segment.text if isinstance(segment, Token) else segment


def _format(task: Task, item: Item, piece: str, fields: Mapping[str, str]) -> str:
    names = [name for _, name, _, _ in string.Formatter().parse(piece) if name is not None]
    absent = [name for name in names if name not in fields]
    if absent:
        raise ValueError(
            f"task {task.name}: the template names {{{absent[0]}}}, but item {item.id} has "
            f"{', '.join(name for name in fields if name != 'candidate') or 'no fields'}"
        )
    return piece.format_map(fields)


def shuffled_images(task: Task, items: Sequence[Item], seed: int) -> dict[tuple[Path, ...], tuple[Path, ...]]:
    """For each item's images those of another item, with other content, in a fixed order that the seed decides.

    All questions about one image get the same other image. The order does not depend on how many items are evaluated
    when ``items`` is the whole split.

    Raises:
        ValueError: all images are the same, so that nothing can be exchanged.
    """
    groups = list(dict.fromkeys(item.images for item in items if item.images))
    ring = sorted(groups, key=lambda images: stable_hash("shuffle", seed, task.name, *(path.name for path in images)))
    swapped = {}
    for place, images in enumerate(ring):
        own = [content_hash(path) for path in images]
        for step in range(1, len(ring)):
            other = ring[(place + step) % len(ring)]
            if len(other) == len(images) and [content_hash(path) for path in other] != own:
                swapped[images] = other
                break
        else:
            raise ValueError(f"task {task.name}: context 'shuffled' needs two different images, all are alike")
    return swapped
