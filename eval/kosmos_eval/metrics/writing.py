"""What can be said of a text without another one: how much of it is said again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

INTRA_DISTINCT = ("intra_distinct_1", "intra_distinct_2", "intra_distinct_3")


def intra_distinct(texts: Sequence[str], n: int) -> np.ndarray:
    """Count the different n-grams of words within each text, and all of them, (N, 2).

    Their quotient over all texts is intra-distinct-n (Gu et al. 2019, DialogWAE): 1 where no text says an n-gram twice.
    Unlike the distinct-n over all texts together it can be resampled, where a text drawn twice would say nothing new.
    """
    counts = []
    for text in texts:
        words = text.split()
        grams = [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]
        counts.append((len(set(grams)), len(grams)))
    return np.array(counts, dtype=np.float64)
