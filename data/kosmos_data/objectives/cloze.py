"""Answers among their choices: GLM's fine-tuning by cloze questions (arXiv 2103.10360, section 2.3).

    document   {"text": "the film is long. It was", "supervised": false}, {"text": "bad", "choices": ["good", "bad"]}
    learnt     cross-entropy over the scores of "good" and "bad" in the blank

The blank is where the answer stands, the score of a choice the log-probability of its words there, in the form that the
model was pretrained in (``fill`` of its objective): GLM reads text and ``<mask>`` both ways and writes behind
``<sop>``, a causal model writes in place. Where each choice is one token, one pass gives all scores; else each has a
copy of the text, and what ends a blank counts too. :class:`kosmos_data.cloze.Cloze` asks in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import errors
from ..document import Document, Text
from ..errors import BadSample
from ..example import IGNORED, Choices, Example, Flat, all_causal, text_only
from . import Objective, filler, special_tokens
from ._arrange import join
from ._flatten import write

if TYPE_CHECKING:
    from kosmos.processing_kosmos import KosmosProcessor


def tokens(options: Mapping[str, Any]) -> list[str]:
    """The special tokens of the form in which blanks are asked."""
    return special_tokens([options.get("form", Cloze.form)])


@dataclass
class Cloze(Objective):
    """The objective of choices.

    Attributes:
        form: objective in whose form the blank is asked: the one of the pretraining.
        bidirectional: what is read sees itself both ways where the form has it so; False for an xPos decoder.
        two_positions: GLM's pair of positions; default as ``bidirectional``.
    """

    form: str = "glm"
    bidirectional: bool = True
    two_positions: bool | None = None

    def prepare(self, processor: KosmosProcessor) -> None:
        """Also refuse a form without blanks, or whose tokens the tokenizer lacks."""
        super().prepare(processor)
        self.fill = filler(self.form)
        self.pairs = self.bidirectional if self.two_positions is None else self.two_positions
        self._example(text_only([self.bos, self.eos, self.eos], 1), (1, 2))

    def __call__(self, document: Document, seed: int, step: int = 0) -> Example:
        """Make the example of the one question of a document; nothing is drawn."""
        at, answer = _asked(document)
        right, *wrong = [answer.text, *(choice for choice in answer.choices or () if choice != answer.text)]
        wordings = [self._ids(choice, document.key) for choice in (right, *wrong)]
        if len({tuple(ids) for ids in wordings}) < len(wordings):
            raise BadSample(errors.NO_CHOICES, f"{document.key}: two of {answer.choices} are the same tokens")
        flat, (start, stop) = self._flat(document, at)
        first = self._example(flat, (start, stop))
        if all(len(ids) == 1 for ids in wordings) and ends_with_blank(first):
            return at_one_output(first, [ids[0] for ids in wordings])
        written = [_with_words(flat, (start, stop), ids) for ids in wordings]
        spans = [(start, start + len(ids)) for ids in wordings]
        return side_by_side([self._example(each, span) for each, span in zip(written, spans, strict=True)])

    def _flat(self, document: Document, at: int) -> tuple[Flat, tuple[int, int]]:
        """The document with the right answer, and where that stands; all its text from there on may be judged."""
        before, answer, behind = 1.0, 2.0, 3.0  # weights, for the time being: which part a token is of
        plain = [replace(one, boxes=None) if isinstance(one, Text) else one for one in document.segments]
        parts = [(one, before if n < at else answer if n == at else behind) for n, one in enumerate(plain)]
        flat = write([([self.bos], before), *parts, ([self.eos], behind)], self.processor, document.key)
        blank = np.flatnonzero(flat.weight == answer)
        return replace(flat, weight=(flat.weight > 0).astype(np.float32)), (int(blank[0]), int(blank[-1]) + 1)

    def _example(self, flat: Flat, span: tuple[int, int]) -> Example:
        example = self.fill(flat, span, self.processor, self.pairs)
        return example if self.bidirectional else all_causal(example)

    def _ids(self, choice: str, key: str) -> list[int]:
        ids = self.processor.encode_text(choice)
        if not ids or self.processor.tokenizer.unk_token_id in ids:
            raise BadSample(errors.NO_CHOICES, f"{key}: the choice {choice!r} is empty or outside the vocabulary")
        return ids


def _asked(document: Document) -> tuple[int, Text]:
    """The segment that has choices, and its place."""
    found = [(at, one) for at, one in enumerate(document.segments) if isinstance(one, Text) and one.choices]
    if len(found) != 1:
        raise BadSample(errors.NO_CHOICES, f"{document.key} has {len(found)} texts with choices, one is expected")
    return found[0]


def ends_with_blank(example: Example) -> bool:
    """Whether only one word is judged, and what ends a blank: then one pass is enough for words of one token."""
    return int((example.weight > 0).sum()) <= 2


def at_one_output(example: Example, words: Sequence[int]) -> Example:
    """The example in which one output judges all words, of which the first is right."""
    output, count = int(np.argmax(example.weight > 0)), len(words)
    tokens = np.stack([np.full(count, output), words, np.arange(count)], axis=1)
    return _judged(example, Choices(tokens, np.zeros(count, dtype=np.int64), np.array([[output, 0]])))


def side_by_side(examples: Sequence[Example]) -> Example:
    """One example of several documents that do not see each other, one a choice, of which the first is right."""
    starts = np.cumsum([0, *map(len, examples)])[:-1]
    tokens = []
    for number, (start, one) in enumerate(zip(starts.tolist(), examples, strict=True)):
        places = np.flatnonzero(one.weight > 0)
        tokens.append(np.stack([places + start, one.label[places], np.full(len(places), number)], axis=1))
    whole = join(examples)
    whole.document = np.repeat(np.arange(len(examples), dtype=np.int32), [len(one) for one in examples])
    whole.position = np.concatenate([one.position for one in examples])
    answers = np.array([[tokens[0][0, 0], 0]])
    return _judged(whole, Choices(np.concatenate(tokens), np.zeros(len(examples), dtype=np.int64), answers))


def _judged(example: Example, choices: Choices) -> Example:
    """One piece without labels, whose weight stands at the question's own output."""
    weight = np.zeros(len(example), dtype=np.float32)
    weight[choices.answers[:, 0]] = 1.0
    made = replace(example, weight=weight, choices=choices, cuts=np.zeros(len(example), dtype=bool))
    made.label = np.full(len(example), IGNORED, dtype=np.int32)
    return made


def _with_words(flat: Flat, span: tuple[int, int], words: Sequence[int]) -> Flat:
    """The same document with other words in the blank."""
    start, stop = span
    longer = len(words) - (stop - start)
    placed = [replace(one, start=one.start + longer) if one.start >= stop else one for one in flat.placed]
    return Flat(
        np.concatenate([flat.ids[:start], np.array(words, dtype=flat.ids.dtype), flat.ids[stop:]]),
        np.concatenate([flat.weight[:start], np.ones(len(words), dtype=np.float32), flat.weight[stop:]]),
        placed,
        np.concatenate([flat.cuts[:start], np.ones(len(words), dtype=bool), flat.cuts[stop:]]),
    )
