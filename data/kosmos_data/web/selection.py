"""What only the whole corpus can tell: duplicates, boilerplate images, five images a document, half of the single ones.

The choice is a function of the set of documents: ties are broken by content and by the document's key, never by order,
so neither the number of tasks nor the executor can change it. It works on a few numbers per document and image, not on
their bytes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np

from .hamming import near_groups
from .rules import DuplicateRules, ImageRules

DOCUMENT_DTYPE: Final = np.dtype(
    [
        ("key", "S32"),
        ("digest", "S32"),  # of its text and images
        ("images", "<i4"),
        ("paragraphs", "<i4"),
        ("characters", "<i8"),
        ("bytes", "<i8"),  # in a tar
        ("task", "<i4"),
        ("index", "<i4"),  # within the task's documents
    ]
)
PICTURE_DTYPE: Final = np.dtype(
    [
        ("document", "<i8"),  # row of its document
        ("position", "<i4"),  # among the document's images
        ("sha256", "S32"),
        ("phash", "<u8"),
        ("pixels", "<i8"),
    ]
)

KEPT: Final = ""
SAME_ADDRESS: Final = "same address"
NEAR_DUPLICATE: Final = "near-duplicate text"
NO_IMAGE_LEFT: Final = "no image left"
ONE_IMAGE: Final = "one image, not drawn"
AGAIN: Final = "again on the same page"
BOILERPLATE: Final = "on too many pages"
COPY: Final = "copy of an image on another page"
BEYOND: Final = "beyond the first few"
PAGE_REASONS: Final = (KEPT, SAME_ADDRESS, NEAR_DUPLICATE, NO_IMAGE_LEFT, ONE_IMAGE)
PICTURE_REASONS: Final = (KEPT, AGAIN, BOILERPLATE, COPY, BEYOND)


@dataclass
class Selection:
    """What becomes of every document and picture.

    Args:
        documents: (n,) index into :data:`PAGE_REASONS`.
        pictures: (m,) index into :data:`PICTURE_REASONS`; a picture that is kept may still go with its document.
        instead: (n,) row of the document that was kept in place of a duplicate, -1 for all others.
    """

    documents: np.ndarray
    pictures: np.ndarray
    instead: np.ndarray

    @property
    def kept(self) -> np.ndarray:
        """(n,) whether the document goes into the corpus."""
        return self.documents == 0


def select(
    documents: np.ndarray, pictures: np.ndarray, clusters: np.ndarray, images: ImageRules, duplicates: DuplicateRules
) -> Selection:
    """Choose documents and pictures.

    Args:
        documents: (n,) of :data:`DOCUMENT_DTYPE`.
        pictures: (m,) of :data:`PICTURE_DTYPE`.
        clusters: (n,) number of the cluster of near-duplicate texts, -1 for a document that has none.
        images, duplicates: thresholds.
    """
    chosen = Selection(
        np.zeros(len(documents), dtype=np.int8),
        np.zeros(len(pictures), dtype=np.int8),
        np.full(len(documents), -1, dtype=np.int64),
    )
    _, addresses = np.unique(documents["key"], return_inverse=True)
    _drop_documents(chosen, documents, addresses, SAME_ADDRESS)
    alone = clusters.max(initial=-1) + 1 + np.arange(len(documents))  # numbers that no cluster has
    _drop_documents(chosen, documents, np.where(clusters < 0, alone, clusters), NEAR_DUPLICATE)
    _drop_pictures(chosen, documents, pictures, images, duplicates)
    left = np.bincount(pictures["document"][_alive(chosen, pictures)], minlength=len(documents))
    chosen.documents[chosen.kept & (left == 0)] = PAGE_REASONS.index(NO_IMAGE_LEFT)
    for row in np.flatnonzero(chosen.kept & (left == 1)):
        if not is_drawn(documents["key"][row], images.keep_one_image):
            chosen.documents[row] = PAGE_REASONS.index(ONE_IMAGE)
    return chosen


def is_drawn(key: bytes, share: float) -> bool:
    """Whether a document with one image is among the ``share`` that stays: by a hash of its key, not by chance.

    KOSMOS-1 discards half of them "randomly"; a hash does the same for every order, executor and second run.
    """
    number = int.from_bytes(hashlib.sha256(b"one image\n" + key).digest()[:8], "big")
    return number < share * 2**64


def best_of_each(groups: np.ndarray, preferences: list[np.ndarray], count: int = 1) -> np.ndarray:
    """Mark the first ``count`` of each group (n,), in the order of ``preferences`` (smaller first)."""
    order = np.lexsort((*reversed(preferences), groups))
    kept = np.zeros(len(groups), dtype=bool)
    kept[order[_rank_in_run(groups[order]) < count]] = True
    return kept


def _drop_documents(chosen: Selection, documents: np.ndarray, groups: np.ndarray, reason: str) -> None:
    """Keep one document of each group: with the most images, then the longest text, then the smallest key."""
    rows = np.flatnonzero(chosen.kept)
    these, groups = documents[rows], groups[rows]
    best = best_of_each(groups, [-these["images"], -these["characters"], these["key"], these["digest"]])
    keeper = dict(zip(groups[best].tolist(), rows[best].tolist(), strict=True))
    for group, row in zip(groups[~best].tolist(), rows[~best].tolist(), strict=True):
        chosen.documents[row] = PAGE_REASONS.index(reason)
        chosen.instead[row] = keeper[group]


def _drop_pictures(
    chosen: Selection, documents: np.ndarray, pictures: np.ndarray, images: ImageRules, duplicates: DuplicateRules
) -> None:
    """Repetitions on a page, then boilerplate everywhere, then copies on other pages, then those beyond the limit."""
    groups = _alike(pictures, duplicates.image_bits)
    page, position = pictures["document"], pictures["position"]
    key = documents["key"][page]

    alive = np.flatnonzero(_alive(chosen, pictures))
    pair = groups[alive] * len(documents) + page[alive]
    _mark(chosen, alive[~best_of_each(pair, [position[alive]])], AGAIN)

    alive = np.flatnonzero(_alive(chosen, pictures))
    pages = np.bincount(groups[alive], minlength=1)
    _mark(chosen, alive[pages[groups[alive]] > duplicates.boilerplate_pages], BOILERPLATE)

    alive = np.flatnonzero(_alive(chosen, pictures))
    preferences = [-pictures["pixels"][alive], key[alive], position[alive]]
    _mark(chosen, alive[~best_of_each(groups[alive], preferences, duplicates.image_pages)], COPY)

    alive = np.flatnonzero(_alive(chosen, pictures))
    _mark(chosen, alive[~best_of_each(page[alive], [position[alive]], images.max_per_document)], BEYOND)


def _alike(pictures: np.ndarray, bits: int) -> np.ndarray:
    """(m,) group numbers: equal bytes, or perceptual hashes within ``bits``; equal bytes have equal hashes."""
    if bits < 0:
        return np.unique(pictures["sha256"], return_inverse=True)[1]
    return near_groups(pictures["phash"], bits)


def _alive(chosen: Selection, pictures: np.ndarray) -> np.ndarray:
    """(m,) pictures that are kept in documents that are kept."""
    return (chosen.pictures == 0) & chosen.kept[pictures["document"]]


def _mark(chosen: Selection, rows: np.ndarray, reason: str) -> None:
    chosen.pictures[rows] = PICTURE_REASONS.index(reason)


def _rank_in_run(values: np.ndarray) -> np.ndarray:
    """(n,) how many equal values stand directly before each."""
    if not len(values):
        return np.zeros(0, dtype=np.int64)
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    return np.arange(len(values)) - np.repeat(starts, np.diff([*starts, len(values)]))
