"""Area under the ROC curve, by which HatefulMemes is scored: the probability that a positive item gets a higher
confidence than a negative one, ties counting one half (Hanley and McNeil 1982).

It is a mean over pairs, not over items, so it has no per-item values of its own. What stands for them are the
placement values of DeLong et al. 1988: for a positive item the share of negatives below it, for a negative one the
share of positives above it. Their two class means are the AUC; a resample's AUC is taken to first order, the sum of
its two class means less the AUC (the bootstrap form of DeLong's variance), which keeps the statistics a sum like every
other metric's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def check_classes(positive: Sequence[bool] | np.ndarray) -> None:
    """ValueError if all items are of one class."""
    if len({bool(label) for label in positive}) < 2:
        raise ValueError(
            f"metric 'roc_auc' needs items of both classes, but all {len(positive)} are "
            f"{'positive' if all(positive) else 'negative'}; evaluate more items, or a split whose labels are public"
        )


def placements(confidences: Sequence[float], positive: Sequence[bool]) -> np.ndarray:
    """The placement value of every item, (N,) in [0, 1].

    Raises:
        ValueError: all items are of one class, or a confidence is no number.
    """
    score, label = np.asarray(confidences, dtype=np.float64), np.asarray(positive, dtype=bool)
    if np.isnan(score).any():
        raise ValueError(f"metric 'roc_auc': confidence {int(np.isnan(score).argmax())} (counting from 0) is no number")
    check_classes(label)
    values = np.empty(len(score))
    for mine, sign in ((True, 1.0), (False, -1.0)):
        others = np.sort(sign * score[label != mine])
        own = sign * score[label == mine]
        below = np.searchsorted(others, own, "left") + np.searchsorted(others, own, "right")
        values[label == mine] = below / (2 * len(others))
    return values


def statistics(values: np.ndarray, positive: Sequence[bool]) -> np.ndarray:
    """(N, 4): placement value and count in the positive class, and in the negative one."""
    label = np.asarray(positive, dtype=np.float64)
    return np.stack([values * label, label, values * (1 - label), 1 - label], axis=-1)


def combine(sums: np.ndarray, area: float) -> np.ndarray:
    """The AUC to first order from summed statistics (..., 4); a class that is not among them counts as all of it."""
    means = [
        np.divide(sums[..., i], sums[..., i + 1], out=np.full(sums.shape[:-1], area), where=sums[..., i + 1] > 0)
        for i in (0, 2)
    ]
    return means[0] + means[1] - area
