"""One record per token: what an objective makes of a document, and all that the rest of the pipeline knows of it.

Prediction, masking and positions of every objective (causal, prefix, span corruption, infilling …) are columns of one
table, so the packer and the model need no case for any of them. One mask rule serves all: a query sees a key when both
are of the same document, and the key is not later **or** both are in the same bidirectional block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from kosmos.segments import Placed

IGNORED = -100
"""The label of an output that predicts nothing, as everywhere in transformers."""


@dataclass(frozen=True, slots=True)
class Choices:
    """Questions whose answers are all known; the model's loss is over the candidates (``kosmos.choices``).

    Args:
        tokens: int (K, 3), of each token that is judged its output, its id, and its candidate.
        questions: int (C,), of each candidate its question.
        answers: int (Q, 2), of each question the output with its weight, and the right candidate.
    """

    tokens: np.ndarray
    questions: np.ndarray
    answers: np.ndarray

    @staticmethod
    def joined(parts: Sequence[tuple[int, Choices]]) -> Choices:
        """Several in one, each so many outputs further on."""
        tokens, questions, answers, candidates, count = [], [], [], 0, 0
        for outputs, one in parts:
            tokens.append(one.tokens + np.array([outputs, 0, candidates]))
            questions.append(one.questions + count)
            answers.append(one.answers + np.array([outputs, candidates]))
            candidates, count = candidates + len(one.questions), count + len(one.answers)
        return Choices(np.concatenate(tokens), np.concatenate(questions), np.concatenate(answers))


@dataclass(slots=True)
class Example:
    """A document as an objective sees it; every array has length T.

    Args:
        token: input ids.
        label: the id that output t must predict (already shifted); −100 where ``weight`` is 0, whatever is given there.
        weight: weight of that prediction in the loss, 0 or more.
        document: 0, 1 … for the documents within (one document: all 0).
        block: −1 causal, otherwise the id of a bidirectional block.
        position: position id of each token, from 0.
        position_in_span: GLM's second position; 0 elsewhere.
        placed: what encoders read, in order of their slots.
        cuts: True at t where the example may be cut before token t, for rows that it does not fit into. All False: the
            example is one piece (its parts refer to each other).
        fallback: so many stretches of the document were too short for the objective and stayed plain causal text.
        ends: True at t where token t ends a sentence and a row may stop before it; ``<s>`` stands for it in the next
            row. Only rows of whole sentences ask for it (:mod:`kosmos_data.sentences`); nowhere by default.
        turns: True at t where token t begins a turn that needs nothing before it; nowhere by default.
        related: 1 at t where what output t writes says something of the persona, 0 where not, −1 where nobody knows;
            None: it is not asked.
        choices: questions whose answers are all known; such an example is one piece. The output that carries the weight
            of one has no label.
    """

    token: np.ndarray
    label: np.ndarray
    weight: np.ndarray
    document: np.ndarray
    block: np.ndarray
    position: np.ndarray
    position_in_span: np.ndarray
    placed: Sequence[Placed]
    cuts: np.ndarray
    fallback: int = 0
    ends: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    turns: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    related: np.ndarray | None = None
    choices: Choices | None = None

    def __post_init__(self) -> None:
        self.label = np.where(self.weight > 0, self.label, np.int32(IGNORED))
        if len(self.ends) == 0:
            self.ends = np.zeros(len(self.token), dtype=bool)

    def __len__(self) -> int:
        return len(self.token)


@dataclass(slots=True)
class Flat:
    """A document written out as ids, before an objective decides what is predicted; arrays have length N.

    Args:
        ids: ``<s>``, segments, ``</s>``.
        weight: weight of *predicting this very token* (not shifted).
        placed: what encoders read, with their slots.
        cuts: True where the sequence may be cut before this token (never inside an image or a span).
        related: as in :class:`Example`, of *this very token* (not shifted).
    """

    ids: np.ndarray
    weight: np.ndarray
    placed: list[Placed]
    cuts: np.ndarray
    related: np.ndarray | None = None


def text_only(ids: Sequence[int], trained_from: int) -> Flat:
    """Ids of text, of which those from ``trained_from`` on are predicted."""
    weight = (np.arange(len(ids)) >= trained_from).astype(np.float32)
    return Flat(np.array(ids, dtype=np.int32), weight, [], np.ones(len(ids), dtype=bool))


def shifted(flat: Flat) -> Example:
    """Plain next-token prediction over ``flat``: T = N − 1 inputs, each with the following id as its label.

    The last id (``</s>``) is only ever a label: nothing comes after it, and the next document begins with ``<s>``.
    """
    length = len(flat.ids) - 1
    return Example(
        token=flat.ids[:-1],
        label=flat.ids[1:],
        weight=flat.weight[1:],
        document=np.zeros(length, dtype=np.int32),
        block=np.full(length, -1, dtype=np.int32),
        position=np.arange(length, dtype=np.int32),
        position_in_span=np.zeros(length, dtype=np.int32),
        placed=flat.placed,
        cuts=flat.cuts[:-1],
        related=None if flat.related is None else flat.related[1:],
    )


def judged_from(start: int, example: Example) -> Example:
    """The same example with weight only on the prediction of token ``start`` and of what is behind it."""
    return replace(example, weight=np.where(np.arange(len(example)) >= start - 1, example.weight, np.float32(0)))


def all_causal(example: Example) -> Example:
    """The same example without bidirectional blocks."""
    return replace(example, block=np.full_like(example.block, -1))
