"""CM3, causal masking: hidden stretches move to the end (arXiv 2201.07520; metaseq ``cm3_dataset.py``).

    text    x1 x2 x3 x4 x5        hidden: x2 x3
    tokens  <s> x1 <X0> x4 x5 <X0> x2 x3 <eos_span> </s>        all causal, loss on all

So a causal model learns to fill gaps with both sides in view. A stretch may hold whole images, which move with it.

Differs from the code: with Poisson 0 the text stays as it is (metaseq raises there), and the document ends with its
``</s>`` behind the moved stretches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..example import Example, Flat, judged_from
from . import SENTINELS, ids_of
from ._arrange import Arrangement, Denoising

if TYPE_CHECKING:
    from kosmos.processing_kosmos import KosmosProcessor

SPAN_END = "<eos_span>"
TOKENS = (*SENTINELS, SPAN_END)


@dataclass
class CM3(Denoising):
    """The CM3 objective.

    Attributes:
        spans: a fixed number of hidden stretches; None draws it.
        poisson: mean of the drawn number (1: 37 % of the documents stay plain).
        sentinel_loss: also predict the sentinels themselves (metaseq does, InCoder does not).
        loss: on any text, or only on ``supervised`` segments.
        chunk_tokens: longer documents are cut into windows of about equal length.
    """

    spans: int | None = None
    poisson: float = 1.0
    sentinel_loss: bool = True
    chunk_tokens: int = 512

    def prepare(self, processor: KosmosProcessor) -> None:
        """Look up sentinels and ``<eos_span>``."""
        super().prepare(processor)
        if self.spans is not None and not 0 < self.spans < len(SENTINELS):
            raise ValueError(f"spans={self.spans} must lie between 1 and {len(SENTINELS) - 1}")
        if self.poisson <= 0:
            raise ValueError(f"poisson={self.poisson} must be above 0")
        *self.sentinels, self.span_end = ids_of(TOKENS, processor, "cm3")

    def transform(self, flat: Flat, rng: np.random.Generator) -> Example | None:
        """Draw the stretches of a window and move them to its end."""
        ends = bool(flat.ids[-1] == self.eos)
        count = min(int(rng.poisson(self.poisson)), len(SENTINELS) - 1) if self.spans is None else self.spans
        places = np.append(np.flatnonzero(flat.cuts[1:]) + 1, [] if ends else [len(flat.ids)]).astype(int)
        if len(places) < 2:
            return None
        hidden = [(int(places[a]), int(places[b])) for a, b in draw_intervals(len(places) - 1, count, rng)]
        return move(flat, hidden, self.sentinels, self.span_end, self.eos, self.sentinel_loss)


def draw_intervals(length: int, count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """At most ``count`` intervals of 0 … ``length`` that do not touch each other's inside, sorted.

    One: two uniform numbers, the smaller rounded down, the larger up to the nearest. More: count² candidates, kept as
    long as they meet none kept before.
    """
    kept: list[tuple[int, int]] = []
    for _ in range(count * count):
        low, high = np.sort(rng.random(2)) * length
        start, stop = int(np.floor(low)), round(float(high))
        if start < stop and len(kept) < count and all(stop <= a or b <= start for a, b in kept):
            kept.append((start, stop))
    return sorted(kept)


def move(
    flat: Flat, hidden: list[tuple[int, int]], sentinels: list[int], span_end: int, eos: int, sentinel_loss: bool
) -> Example:
    """Replace each stretch by a sentinel; write the stretches behind the text."""
    arrangement = Arrangement(flat)
    ends = bool(flat.ids[-1] == eos)
    weight, at = float(sentinel_loss), 0
    for sentinel, (start, stop) in zip(sentinels, hidden, strict=False):
        arrangement.copy(at, start)
        arrangement.insert(sentinel, weight)
        at = stop
    arrangement.copy(at, len(flat.ids) - int(ends))
    for sentinel, (start, stop) in zip(sentinels, hidden, strict=False):
        arrangement.insert(sentinel, weight)
        arrangement.copy(start, stop)
        arrangement.insert(span_end, 1.0)
    if ends:
        arrangement.copy(len(flat.ids) - 1, len(flat.ids))
    return arrangement.shifted(keep_last=not ends)


def fill(flat: Flat, span: tuple[int, int], processor: KosmosProcessor, two_positions: bool) -> Example:
    """A blank: the only stretch that moves to the end; its words and ``<eos_span>`` are judged."""
    sentinel, span_end = ids_of((SENTINELS[0], SPAN_END), processor, "cm3")
    unended = Flat(flat.ids[:-1], flat.weight[:-1], flat.placed, flat.cuts[:-1])
    example = move(unended, [span], [sentinel], span_end, processor.tokenizer.eos_token_id, True)
    return judged_from(len(example) - (span[1] - span[0]) - 1, example)
