"""One record per token: what an objective makes of a document, and all that the rest of the pipeline knows of it.

Prediction, masking and positions of every objective (causal, prefix, span corruption, infilling …) are columns of one
table, so the packer and the model need no case for any of them. One mask rule serves all: a query sees a key when both
are of the same document, and the key is not later **or** both are in the same bidirectional block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

IGNORED = -100
"""The label of an output that predicts nothing, as everywhere in transformers."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Something that an encoder reads, and the places that its features take in the decoder.

    Args:
        kind: ``image`` or ``text``.
        start: index of the first slot in the token sequence.
        length: number of slots; they follow each other.
        payload: image: ``uint8`` pixels (3, S, S); text: ids (L,) for the text encoder.
    """

    kind: Literal["image", "text"]
    start: int
    length: int
    payload: np.ndarray


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
        spans: images and text spans in order of their slots.
        cuts: True at t where the example may be cut before token t, for rows that it does not fit into. All False: the
            example is one piece (its parts refer to each other).
        fallback: so many stretches of the document were too short for the objective and stayed plain causal text.
        ends: True at t where token t ends a sentence and a row may stop before it; ``<s>`` stands for it in the next
            row. Only rows of whole sentences ask for it (:mod:`kosmos_data.sentences`); nowhere by default.
    """

    token: np.ndarray
    label: np.ndarray
    weight: np.ndarray
    document: np.ndarray
    block: np.ndarray
    position: np.ndarray
    position_in_span: np.ndarray
    spans: Sequence[Placed]
    cuts: np.ndarray
    fallback: int = 0
    ends: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))

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
        spans: images and text spans with their slots.
        cuts: True where the sequence may be cut before this token (never inside an image).
    """

    ids: np.ndarray
    weight: np.ndarray
    spans: list[Placed]
    cuts: np.ndarray


@dataclass(slots=True)
class FlatBuilder:
    """Collects ids segment by segment into a :class:`Flat`."""

    ids: list[int] = field(default_factory=list)
    weight: list[float] = field(default_factory=list)
    cuts: list[bool] = field(default_factory=list)
    spans: list[Placed] = field(default_factory=list)

    def add(self, ids: Sequence[int], weight: float) -> None:
        """Ordinary tokens, all with one weight."""
        self.ids += ids
        self.weight += [weight] * len(ids)
        self.cuts += [True] * len(ids)

    def add_span(self, kind: Literal["image", "text"], ids: Sequence[int], payload: np.ndarray, begin: float) -> None:
        """One begin token (weight ``begin``), slots and one end token, which stay together in one row."""
        self.spans.append(Placed(kind, len(self.ids) + 1, len(ids) - 2, payload))
        self.ids += ids
        self.weight += [begin] + [0.0] * (len(ids) - 1)
        self.cuts += [True] + [False] * (len(ids) - 1)

    def add_text_span(self, slot: int, slots: int, payload: Sequence[int]) -> None:
        """So many slots for what the text encoder reads (``processor.span_slots``), all in one row."""
        self.spans.append(Placed("text", len(self.ids), slots, np.array(payload, dtype=np.int32)))
        self.ids += [slot] * slots
        self.weight += [0.0] * slots
        self.cuts += [True] + [False] * (slots - 1)

    def build(self) -> Flat:
        return Flat(
            np.array(self.ids, dtype=np.int32),
            np.array(self.weight, dtype=np.float32),
            self.spans,
            np.array(self.cuts, dtype=bool),
        )


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
        spans=flat.spans,
        cuts=flat.cuts[:-1],
    )


def judged_from(start: int, example: Example) -> Example:
    """The same example with weight only on the prediction of token ``start`` and of what is behind it."""
    return replace(example, weight=np.where(np.arange(len(example)) >= start - 1, example.weight, np.float32(0)))


def all_causal(example: Example) -> Example:
    """The same example without bidirectional blocks."""
    return replace(example, block=np.full_like(example.block, -1))
