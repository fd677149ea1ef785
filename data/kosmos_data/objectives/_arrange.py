"""What the denoising objectives share: eligible tokens, random draws, pieces of a document in a new order, windows.

An objective is a method ``transform(flat, rng) → Example | None`` of one window of a document; :class:`Denoising` does
the rest. None means "too short for me": the window stays plain causal text and is counted (``Example.fallback``).

A long document is cut into windows, because its parts refer to each other and may not be cut later. The windows of one
document stand behind each other in one example; the packer may part them, and where it does not, a window also sees
those before it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from kosmos.segments import Encoded, Placed

from ..document import Document
from ..example import Example, Flat, all_causal
from . import Objective
from ._flatten import Loss, flatten

if TYPE_CHECKING:
    from kosmos.processing_kosmos import KosmosProcessor


@dataclass
class Denoising(Objective):
    """An objective that flattens a document, transforms each window, and joins the results.

    Texts are read without their boxes, unless the objective says that it keeps these.

    Attributes:
        loss: see :func:`~._flatten.flatten`.
        bidirectional: keep the blocks that see both ways; False: the same tokens, labels and weights, all causal.
    """

    loss: Loss = "all"
    boxes: ClassVar[bool] = False  # what hides or moves tokens would tear phrases and their boxes apart
    bidirectional = True  # an option only of those that declare it, as ``chunk_tokens``

    def prepare(self, processor: KosmosProcessor) -> None:
        """Also refuse windows that are too short."""
        super().prepare(processor)
        if (limit := self.limit()) is not None and limit < 8:
            raise ValueError(f"chunk_tokens={limit} must be at least 8")
        self.salt = list(type(self).__module__.rpartition(".")[2].encode())  # draws of two objectives are independent

    def limit(self) -> int | None:
        """Return the most tokens in a window; None: the whole document in one."""
        return getattr(self, "chunk_tokens", None)

    def transform(self, flat: Flat, rng: np.random.Generator) -> Example | None:
        """Make the example of one window; None: it is too short."""
        raise NotImplementedError

    def __call__(self, document: Document, seed: int, step: int = 0) -> Example:
        """Make the example of a document, window by window."""
        examples = []
        for number, window in enumerate(
            windows(flatten(document, self.processor, self.loss, boxes=self.boxes), self.limit())
        ):
            example = self.transform(window, np.random.default_rng([seed, number, *self.salt]))
            examples.append(plain(window, self.eos) if example is None else example)
        joined = join(examples)
        return joined if self.bidirectional else all_causal(joined)


def plain(flat: Flat, eos: int) -> Example:
    """A window as causal text, counted as a fallback if any of it carries loss."""
    arrangement = Arrangement(flat)
    arrangement.copy(0, len(flat.ids))
    example = arrangement.shifted(keep_last=bool(flat.ids[-1] != eos), may_cut=True)
    return replace(example, fallback=int((example.weight > 0).any()))


def maskable(flat: Flat, eos: int) -> np.ndarray:
    """Which tokens an objective may hide: those that carry loss, that is text, except the final ``</s>``."""
    free = flat.weight > 0
    if flat.ids[-1] == eos:
        free[-1] = False
    return free


def runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """(start, stop) of the stretches of True in ``mask``."""
    padded = np.zeros(len(mask) + 2, dtype=bool)
    padded[1:-1] = mask
    edges = np.flatnonzero(padded[1:] != padded[:-1]).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


class Arrangement:
    """Pieces of a flat document, and tokens put between them, one behind the other.

    Each token comes with the weight of predicting *this very* token; :meth:`shifted` turns that into labels.
    """

    def __init__(self, flat: Flat) -> None:
        self.flat = flat
        self.length = 0
        self._new_place = np.full(len(flat.ids), -1, dtype=np.int64)
        self._ids: list[np.ndarray] = []
        self._targets: list[np.ndarray] = []
        self._weight: list[np.ndarray] = []
        self._cuts: list[np.ndarray] = []
        self._inserted: list[Placed] = []

    def copy(self, start: int, stop: int, predict: bool = True) -> None:
        """Tokens ``start`` … ``stop`` of the document, predicted with their own weight or only read."""
        part = slice(start, stop)
        self._new_place[part] = np.arange(self.length, self.length + max(0, stop - start))
        weight = self.flat.weight[part]
        self._add(self.flat.ids[part], self.flat.ids[part], weight if predict else weight * 0, self.flat.cuts[part])

    def insert(self, token: int, weight: float = 0.0) -> None:
        """One token that is not the document's."""
        ids = np.array([token], dtype=np.int32)
        self._add(ids, ids, np.array([weight], dtype=np.float32), np.zeros(1, dtype=bool))

    def insert_encoded(self, encoded: Encoded, target: int, weight: float) -> None:
        """Slots of what an encoder reads, which stay together; at the place of the first ``target`` is predicted."""
        self._inserted += [replace(placed, start=placed.start + self.length) for placed in encoded.placed]
        ids = np.array(encoded.ids, dtype=np.int32)
        targets, weights, cuts = ids.copy(), np.zeros(len(ids), dtype=np.float32), np.zeros(len(ids), dtype=bool)
        targets[0], weights[0], cuts[0] = target, weight, True
        self._add(ids, targets, weights, cuts)

    def shifted(self, bidirectional: int = 0, keep_last: bool = False, may_cut: bool = False) -> Example:
        """The example in which output t predicts token t + 1.

        Args:
            bidirectional: so many tokens at the beginning see each other.
            keep_last: also read the last token (a window that does not end its document), which predicts nothing.
            may_cut: the example may be cut where the document may be.
        """
        ids, targets, weight, cuts = (
            np.concatenate(column) for column in (self._ids, self._targets, self._weight, self._cuts)
        )
        length = len(ids) - (not keep_last)
        return Example(
            token=ids[:length],
            label=np.append(targets[1:], np.int32(0))[:length],
            weight=np.append(weight[1:], np.float32(0))[:length],
            document=np.zeros(length, dtype=np.int32),
            block=np.where(np.arange(length) < bidirectional, 0, -1).astype(np.int32),
            position=np.arange(length, dtype=np.int32),
            position_in_span=np.zeros(length, dtype=np.int32),
            placed=self.placed(),
            cuts=cuts[:length] & may_cut,
        )

    def placed(self) -> list[Placed]:
        """What encoders read of the document at its new places, and what was inserted, in order."""
        moved = [replace(placed, start=int(self._new_place[placed.start])) for placed in self.flat.placed]
        return sorted(moved + self._inserted, key=lambda placed: placed.start)

    def _add(self, ids: np.ndarray, targets: np.ndarray, weight: np.ndarray, cuts: np.ndarray) -> None:
        self._ids.append(ids)
        self._targets.append(targets)
        self._weight.append(weight)
        self._cuts.append(cuts)
        self.length += len(ids)


def windows(flat: Flat, limit: int | None) -> Iterator[Flat]:
    """Cut into pieces of about equal length, none longer than ``limit`` unless an image cannot be cut."""
    count = 1 if limit is None else -(-len(flat.ids) // limit)
    allowed = np.flatnonzero(flat.cuts)
    wanted = np.linspace(0, len(flat.ids), count + 1)[1:-1]
    edges = sorted({0, len(flat.ids), *(int(allowed[allowed <= edge].max(initial=0)) for edge in wanted)})
    for start, stop in itertools.pairwise(edges):
        placed = [replace(one, start=one.start - start) for one in flat.placed if start <= one.start < stop]
        yield Flat(flat.ids[start:stop], flat.weight[start:stop], placed, flat.cuts[start:stop])


def join(examples: Sequence[Example]) -> Example:
    """Put the examples of one document's windows behind each other; cut only between them."""
    if len(examples) == 1:
        return examples[0]
    starts = np.cumsum([0, *(len(example) for example in examples)])[:-1].tolist()
    blocks = np.cumsum([0, *(example.block.max(initial=-1) + 1 for example in examples)])
    positions = np.cumsum([0, *(example.position.max(initial=-1) + 1 for example in examples)])
    cuts = [example.cuts.copy() for example in examples]
    for cut in cuts[1:]:
        cut[:1] = True
    return Example(
        token=_concatenate(example.token for example in examples),
        label=_concatenate(example.label for example in examples),
        weight=_concatenate(example.weight for example in examples),
        document=_concatenate(example.document for example in examples),
        block=_concatenate(
            np.where(example.block >= 0, example.block + int(first), -1).astype(np.int32)
            for example, first in zip(examples, blocks, strict=False)
        ),
        position=_concatenate(
            example.position + np.int32(first) for example, first in zip(examples, positions, strict=False)
        ),
        position_in_span=_concatenate(example.position_in_span for example in examples),
        placed=[
            replace(placed, start=placed.start + start)
            for example, start in zip(examples, starts, strict=True)
            for placed in example.placed
        ],
        cuts=_concatenate(cuts),
        fallback=sum(example.fallback for example in examples),
    )


def _concatenate(columns: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate(list(columns))
