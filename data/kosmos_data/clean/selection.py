"""Which of several equal or nearly equal documents stays: a function of the corpus, never of tasks or workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from ..web.hamming import near_groups
from ..web.rules import NearRules
from ..web.selection import best_of_each

KEPT: Final = ""
EXACT: Final = "exact duplicate"
NEAR_TEXT: Final = "near-duplicate text"
NEAR_PAIR: Final = "near-duplicate text, pictures alike"
REASONS: Final = (KEPT, EXACT, NEAR_TEXT, NEAR_PAIR)


@dataclass
class Selection:
    """What becomes of every document.

    Args:
        reasons: (n,) index into :data:`REASONS`.
        instead: (n,) row of the document that was kept in place of a duplicate, -1 for all others.
    """

    reasons: np.ndarray
    instead: np.ndarray

    @property
    def kept(self) -> np.ndarray:
        """(n,) whether the document goes into the result."""
        return self.reasons == 0


def select(documents: np.ndarray, pictures: np.ndarray, clusters: np.ndarray, rules: NearRules | None) -> Selection:
    """Choose documents.

    Args:
        documents: (n,) of :data:`kosmos_data.clean.manifest.DOCUMENT_DTYPE`, in the order of the source.
        pictures: (m,) of ``PICTURE_DTYPE``, in the order of documents and positions.
        clusters: (n,) number of the cluster of near-duplicate texts, -1 for a document that has none.
        rules: when pictures are alike; None: only exact duplicates go.
    """
    chosen = Selection(np.zeros(len(documents), np.int8), np.full(len(documents), -1, np.int64))
    _, equal = np.unique(documents["digest"], return_inverse=True)
    exact = np.full(len(documents), REASONS.index(EXACT), np.int8)
    _keep_one(chosen, documents, equal, exact)
    if rules is not None:
        near = np.where(documents["images"] > 0, REASONS.index(NEAR_PAIR), REASONS.index(NEAR_TEXT)).astype(np.int8)
        _keep_one(chosen, documents, near_documents(documents, pictures, clusters, rules), near)
    # The one that was kept in place of an exact copy may itself have gone for a near one.
    moved = (chosen.instead >= 0) & (chosen.instead[chosen.instead] >= 0)
    chosen.instead[moved] = chosen.instead[chosen.instead[moved]]
    return chosen


def near_documents(documents: np.ndarray, pictures: np.ndarray, clusters: np.ndarray, rules: NearRules) -> np.ndarray:
    """Group numbers (n,): texts of one cluster, or of the same few words, with pictures that are alike one by one."""
    count = len(documents)
    _, short = np.unique(documents["short"], return_inverse=True)
    free = clusters.max(initial=-1) + 1  # the first number that no cluster has
    text = np.where(clusters >= 0, clusters, np.where(documents["short"] > 0, free + short, -1))
    alone = (text < 0) | ~documents["near"]
    text = np.where(alone, free + count + np.arange(count), text)
    shown = _picture_sets(count, pictures, rules.image_bits)
    _, groups = np.unique(np.stack([text, shown], axis=1), axis=0, return_inverse=True)
    return groups.reshape(-1)


def _picture_sets(count: int, pictures: np.ndarray, bits: int) -> np.ndarray:
    """(n,) equal numbers for documents whose pictures, in order, are alike; 0 for those without."""
    if bits < 0:
        _, alike = np.unique(pictures["sha256"], return_inverse=True)
    else:
        alike = near_groups(pictures["phash"], bits)
    numbers, known = np.zeros(count, np.int64), {(): 0}
    rows, starts = np.unique(pictures["document"], return_index=True)
    for row, run in zip(rows.tolist(), np.split(alike, starts[1:]), strict=False):
        numbers[row] = known.setdefault(tuple(run.tolist()), len(known))
    return numbers


def _keep_one(chosen: Selection, documents: np.ndarray, groups: np.ndarray, reasons: np.ndarray) -> None:
    """Keep one document of each group: with the most images, then the longest text, then the first of the source."""
    rows = np.flatnonzero(chosen.kept)
    these, groups = documents[rows], groups[rows]
    best = best_of_each(groups, [-these["images"], -these["characters"], these["number"]])
    keeper = np.full(groups.max(initial=-1) + 1, -1, np.int64)
    keeper[groups[best]] = rows[best]
    chosen.reasons[rows[~best]] = reasons[rows[~best]]
    chosen.instead[rows[~best]] = keeper[groups[~best]]
