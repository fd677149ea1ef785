"""Span corruption: hidden stretches are written behind the text, each announced by a sentinel (T5, arXiv 1910.10683).

    text    x1 x2 x3 x4 x5 x6        hidden: x2 x3, x6
    tokens  <s> x1 <X0> x4 x5 <X1> | <X0> x2 x3 <X1> x6 </s>       block 0 before the bar; loss behind it

Lengths and their random division follow ``random_spans_noise_mask`` of T5's ``preprocessors.py``: the text begins
unmasked and ends masked, no sentinel closes the targets. The encoder of T5 is the bidirectional block here.

Differs from the code: an image is never hidden, and a stretch that would reach over one is divided by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..example import Example, Flat, judged_from
from . import SENTINELS, ids_of
from ._arrange import Arrangement, Denoising, maskable, runs

if TYPE_CHECKING:
    from kosmos.processing_kosmos import KosmosProcessor

TOKENS = SENTINELS


@dataclass
class SpanCorruption(Denoising):
    """The span corruption objective.

    Attributes:
        density: share of the text that is hidden.
        mean_length: of the hidden stretches, in tokens.
        bidirectional: the text with its sentinels sees itself both ways, as T5's encoder does; False: everything is
            causal, which is what an xPos decoder can run.
        loss: hide any text, or only ``supervised`` segments.
        chunk_tokens: longer documents are cut into windows of about equal length.
    """

    density: float = 0.15
    mean_length: float = 3.0
    bidirectional: bool = True
    chunk_tokens: int = 512

    def prepare(self, processor: KosmosProcessor) -> None:
        """Look up the sentinels (``<extra_id_0>`` …)."""
        super().prepare(processor)
        check_noise(self.density, self.mean_length, self.chunk_tokens)
        self.sentinels = ids_of(SENTINELS, processor, "span_corruption")

    def transform(self, flat: Flat, rng: np.random.Generator) -> Example | None:
        """Draw the hidden stretches of a window and write them behind it."""
        mask = draw_noise(maskable(flat, self.eos), self.density, self.mean_length, rng)
        return None if mask is None else corrupt(flat, mask, self.sentinels, self.bos, self.eos)


def check_noise(density: float, mean_length: float, chunk_tokens: int) -> None:
    """Raise ValueError unless such noise can be drawn and its stretches counted by the sentinels."""
    if not 0 < density < 1:
        raise ValueError(f"density={density} must lie between 0 and 1")
    if mean_length < 1:
        raise ValueError(f"mean_length={mean_length} must be at least 1 token")
    spans = noise_counts(chunk_tokens, density, mean_length)[1]
    if spans > len(SENTINELS):
        raise ValueError(
            f"density={density}, mean_length={mean_length} hide {spans} stretches in chunk_tokens={chunk_tokens}, but "
            f"there are {len(SENTINELS)} sentinels; lower chunk_tokens to {chunk_tokens * len(SENTINELS) // spans}"
        )


def noise_counts(length: int, density: float, mean_length: float) -> tuple[int, int]:
    """(hidden tokens, stretches) of a text of ``length`` tokens, rounded as T5 does."""
    noise = min(max(round(length * density), 1), length - 1)
    spans = max(round(noise / mean_length), 1)
    return noise, min(spans, noise, length - noise)


def noise_mask(length: int, density: float, mean_length: float, rng: np.random.Generator) -> np.ndarray:
    """Which of ``length`` ≥ 2 tokens are hidden; stretches and the gaps before them are uniform random divisions."""
    noise, spans = noise_counts(length, density, mean_length)
    hidden, kept = (_divide(total, spans, rng) for total in (noise, length - noise))
    return np.repeat(np.arange(2 * spans) % 2 == 1, np.stack([kept, hidden], axis=1).ravel())


def draw_noise(free: np.ndarray, density: float, mean_length: float, rng: np.random.Generator) -> np.ndarray | None:
    """Noise over the tokens that are ``free`` to be hidden, at most as many stretches as sentinels; None: too few."""
    places = np.flatnonzero(free)
    if len(places) < 2:
        return None
    mask = np.zeros(len(free), dtype=bool)
    mask[places] = noise_mask(len(places), density, mean_length, rng)
    for start, stop in runs(mask)[len(SENTINELS) :]:
        mask[start:stop] = False
    return mask


def corrupt(
    flat: Flat, mask: np.ndarray, sentinels: Sequence[int], bos: int, eos: int, mode: int | None = None
) -> Example:
    """Hide ``mask`` behind sentinels and append what was hidden; ``mode`` is put behind the ``<s>``."""
    arrangement = Arrangement(flat)
    hidden = runs(mask)
    at = int(flat.ids[0] == bos)
    arrangement.copy(0, at, predict=False)
    if mode is not None:
        arrangement.insert(mode)
    for sentinel, (start, stop) in zip(sentinels, hidden, strict=False):
        arrangement.copy(at, start, predict=False)
        arrangement.insert(sentinel)
        at = stop
    arrangement.copy(at, len(flat.ids) - int(flat.ids[-1] == eos), predict=False)
    inputs = arrangement.length
    for sentinel, (start, stop) in zip(sentinels, hidden, strict=False):
        arrangement.insert(sentinel, weight=1.0)
        arrangement.copy(start, stop)
    arrangement.insert(eos, weight=1.0)
    return arrangement.shifted(bidirectional=inputs)


def fill(
    flat: Flat, span: tuple[int, int], processor: KosmosProcessor, two_positions: bool, mode: str | None = None
) -> Example:
    """A blank: the only hidden stretch, written behind its sentinel."""
    tokenizer = processor.tokenizer
    sentinels = ids_of(SENTINELS[:1], processor, "span_corruption")
    announced = None if mode is None else ids_of((mode,), processor, "ul2")[0]
    hidden = np.zeros(len(flat.ids), dtype=bool)
    hidden[slice(*span)] = True
    example = corrupt(flat, hidden, sentinels, tokenizer.bos_token_id, tokenizer.eos_token_id, announced)
    return judged_from(len(example) - (span[1] - span[0]), example)


def _divide(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """A uniform random division of ``total`` into positive ``parts``."""
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))
