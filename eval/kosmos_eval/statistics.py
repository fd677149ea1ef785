"""Uncertainty of a score: percentile bootstrap over images, and the paired comparison of two models.

Questions about one image are not independent, so whole images are drawn (cluster bootstrap); the same draws serve
both models of a comparison. Source: Efron and Tibshirani 1993, chapters 13 and 16; Koehn 2004 for paired resampling
of corpus metrics.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from .metrics import MetricScore

RESAMPLES = 1000
_LEVELS = (2.5, 97.5)
_CHUNK = 4_000_000  # draws held in memory at a time


@dataclass(frozen=True)
class Comparison:
    """Paired difference ``second - first`` with its 95 % interval and two-sided bootstrap p-value."""

    metric: str
    first: float
    second: float
    difference: float
    low: float
    high: float
    p_value: float
    n: int
    clusters: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def interval(score: MetricScore, clusters: Sequence[Hashable] | None = None, seed: int = 0) -> tuple[float, float]:
    """The 95 % bootstrap interval of a score.

    Args:
        clusters: for each item what is drawn as a whole (its image); default every item by itself.
        seed: of the draws; the same seed gives the same interval.
    """
    low, high = np.percentile(score.combine(_resampled(_cluster_sums(score, clusters), seed)), _LEVELS)
    return float(low), float(high)


def compare(
    first: MetricScore, second: MetricScore, clusters: Sequence[Hashable] | None = None, seed: int = 0
) -> Comparison:
    """Compare two models on the same items, in the same order.

    Raises:
        ValueError: the two scores are of different metrics or lengths.
    """
    if first.name != second.name or first.n != second.n:
        raise ValueError(
            f"cannot pair {first.name} on {first.n} items with {second.name} on {second.n} items: "
            "both models must be scored by the same metric on the same items"
        )
    one, two = _cluster_sums(first, clusters), _cluster_sums(second, clusters)
    differences = second.combine(_resampled(two, seed)) - first.combine(_resampled(one, seed))
    low, high = np.percentile(differences, _LEVELS)
    tail = min((differences <= 0).mean(), (differences >= 0).mean())
    return Comparison(
        first.name, first.value, second.value, second.value - first.value, float(low), float(high),
        float(min(1.0, 2 * max(tail, 1 / RESAMPLES))), first.n, len(one),
    )  # fmt: skip


def _cluster_sums(score: MetricScore, clusters: Sequence[Hashable] | None) -> np.ndarray:
    """Statistics summed per cluster, (C, K), clusters in order of first appearance."""
    if clusters is None:
        return score.statistics
    if len(clusters) != score.n:
        raise ValueError(f"{len(clusters)} cluster names for {score.n} items")
    index: dict[Hashable, int] = {}
    places = [index.setdefault(cluster, len(index)) for cluster in clusters]
    sums = np.zeros((len(index), score.statistics.shape[1]))
    np.add.at(sums, places, score.statistics)
    return sums


def _resampled(sums: np.ndarray, seed: int) -> np.ndarray:
    """Statistics of each resample, (RESAMPLES, K): clusters drawn with replacement, the same for the same seed."""
    if RESAMPLES * len(sums) <= _CHUNK:
        return _drawn(len(sums), seed) @ sums
    return np.concatenate([drawn @ sums for drawn in _draws(len(sums), seed)])


@lru_cache(maxsize=8)
def _drawn(count: int, seed: int) -> np.ndarray:
    """The draws of all resamples at once; kept, since model, baselines and question types have the same clusters."""
    return np.concatenate(list(_draws(count, seed)))


def _draws(count: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of ``count`` clusters is drawn in each resample, (RESAMPLES, count) in parts."""
    generator, chunk = np.random.default_rng(seed), max(1, min(RESAMPLES, _CHUNK // count))
    for start in range(0, RESAMPLES, chunk):
        size = min(chunk, RESAMPLES - start)
        yield generator.multinomial(count, np.full(count, 1 / count), size=size).astype(np.float64)
