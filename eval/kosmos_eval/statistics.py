"""Uncertainty of a score: percentile bootstrap over images, and the paired comparison of two models.

Questions about one image are not independent, so whole images are drawn (cluster bootstrap); the same draws serve
both models of a comparison. Source: Efron and Tibshirani 1993, chapters 13 and 16; Koehn 2004 for paired resampling
of corpus metrics.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .metrics import MetricScore

RESAMPLES = 1000
_LEVELS = (2.5, 97.5)


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
    sums = _cluster_sums(score, clusters)
    draws = _draws(len(sums), seed)
    low, high = np.percentile(score.combine(draws @ sums), _LEVELS)
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
    draws = _draws(len(one), seed)
    differences = second.combine(draws @ two) - first.combine(draws @ one)
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


def _draws(clusters: int, seed: int) -> np.ndarray:
    """How often each cluster is drawn in each resample, (RESAMPLES, C)."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(clusters, np.full(clusters, 1 / clusters), size=RESAMPLES).astype(np.float64)
