"""Uncertainty of figures that depend on a seed and on an item: both are drawn anew, crossed (Owen 2007).

A figure is the mean over a matrix of values, one row a seed, one column an item (a window of text, a picture). What
training makes of another seed and what the test makes of other items are both in its interval. With three seeds the
share of the seeds is estimated roughly, and rather too small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
_LEVELS = (2.5, 97.5)


@dataclass(frozen=True)
class Cell:
    """Values of one cell: (S, N), and how much each of the N items weighs."""

    values_SN: np.ndarray
    weight_N: np.ndarray

    @property
    def seeds(self) -> list[float]:
        """The mean of each seed."""
        return [float(np.average(row, weights=self.weight_N)) for row in self.values_SN]


def combined(cells: Sequence[tuple[float, Cell]]) -> Cell:
    """The weighted sum of cells that have the same seeds and items.

    Raises:
        ValueError: they differ in them.
    """
    (_, first), *_ = cells
    for _, cell in cells:
        if cell.values_SN.shape != first.values_SN.shape or not np.array_equal(cell.weight_N, first.weight_N):
            raise ValueError(
                f"cells of {first.values_SN.shape} and {cell.values_SN.shape} seeds and items are not paired: measure "
                "the same items with the same seeds"
            )
    weighted = [weight * cell.values_SN for weight, cell in cells]
    return Cell(np.sum(weighted, axis=0), first.weight_N)


def interval(cell: Cell, seed: int = 0) -> tuple[float, float, float]:
    """Mean and 95 % interval; the same seed gives the same draws."""
    generator = np.random.default_rng(seed)
    seeds, items = cell.values_SN.shape
    drawn_RS = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES) / seeds
    drawn_RN = generator.multinomial(items, np.full(items, 1 / items), size=RESAMPLES) * cell.weight_N
    drawn_RN = drawn_RN / drawn_RN.sum(1, keepdims=True)
    means_R = ((drawn_RS @ cell.values_SN) * drawn_RN).sum(1)
    low, high = np.percentile(means_R, _LEVELS)
    return float(np.mean(cell.seeds)), float(low), float(high)
