"""How often one system wins, with its interval, and how far people agree."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from itertools import permutations

import numpy as np

_Z = 1.959963984540054  # 97.5 % of a normal distribution


def win_rate(scores: Sequence[float]) -> tuple[float, float, float]:
    """The mean of the items' scores (1 a win, 0.5 a tie, 0 a loss) and its 95 % interval.

    The interval is Wilson's (1927) at the effective number of items: those divided by the design effect (Kish 1965),
    which is the variance of the scores over that of wins and losses of the same mean. Without ties it is Wilson's; ties
    and means over several raters make it narrower. As a bootstrap's would not, it has a width where all items are won.
    One win and one loss more than were seen keep that variance from vanishing where nearly all are ties.

    Args:
        scores: one number an item, at least one.
    """
    values, n = np.asarray(scores, dtype=np.float64), len(scores)
    mean = float(values.mean())
    variance = (float(((values - mean) ** 2).sum()) + 0.5) / (n + 2)
    effect = min(1.0, variance / (mean * (1 - mean))) if 0 < mean < 1 else 1.0
    effective, square = n / effect, _Z**2
    centre = (mean + square / (2 * effective)) / (1 + square / effective)
    half = _Z / (1 + square / effective) * math.sqrt(mean * (1 - mean) / effective + square / (4 * effective**2))
    return mean, max(0.0, centre - half), min(1.0, centre + half)


def krippendorff_alpha(units: Iterable[Sequence[Hashable]]) -> float | None:
    """Krippendorff's alpha of nominal values: 1 where all agree, 0 where they agree as often as by chance.

    Source: Krippendorff 2011, Computing Krippendorff's Alpha-Reliability, section C.

    Args:
        units: the values that each unit was given, in any number; a unit with fewer than two says nothing.

    Returns:
        None where it is not defined: no unit with two values, or only one value in all.
    """
    coincidences: Counter[tuple[Hashable, Hashable]] = Counter()
    for values in units:
        for pair in permutations(values, 2):
            coincidences[pair] += 1 / (len(values) - 1)  # type: ignore[assignment]
    totals: Counter[Hashable] = Counter()
    for (value, _), count in coincidences.items():
        totals[value] += count
    n = totals.total()
    expected = n * n - sum(count**2 for count in totals.values())
    if len(totals) < 2:
        return None
    observed = sum(count for (one, other), count in coincidences.items() if one != other)
    return 1 - (n - 1) * observed / expected


def same_share(units: Iterable[Sequence[Hashable]]) -> float | None:
    """The share of pairs of judgements on one unit that are the same; None without any."""
    pairs = [one == other for values in units for one, other in permutations(values, 2)]
    return sum(pairs) / len(pairs) if pairs else None
