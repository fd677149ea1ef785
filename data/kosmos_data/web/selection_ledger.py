"""What the selection dropped, written into the ledger, with examples read from the documents themselves."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ..document import Document
from ..reader import Corpus
from .draft import image_example, look_at, page_example
from .ledger import IMAGES, PAGES, PARAGRAPHS, WITH_PAGE, Ledger
from .page import ImageReference
from .selection import BEYOND, ONE_IMAGE, PAGE_REASONS, PICTURE_REASONS, Selection
from .work_folder import task_folder


def account(ledger: Ledger, work: str, documents: np.ndarray, pictures: np.ndarray, chosen: Selection) -> None:
    """Write what the selection dropped and kept into the ledger, with examples read from the documents."""
    read = _Examples(work, documents)
    alive = np.bincount(pictures["document"][chosen.pictures == 0], minlength=len(documents))
    for row in np.flatnonzero(~chosen.kept).tolist():
        reason = PAGE_REASONS[chosen.documents[row]]
        stage = "selection" if reason == ONE_IMAGE else "duplicates"
        ledger.drop(PAGES, stage, reason, read.identity(row), partial(read.page, row, int(chosen.instead[row])))
        ledger.drop_many(PARAGRAPHS, stage, WITH_PAGE, int(documents["paragraphs"][row]))
        ledger.drop_many(IMAGES, stage, WITH_PAGE, int(alive[row]))
    for row in np.flatnonzero(chosen.pictures).tolist():
        reason = PICTURE_REASONS[chosen.pictures[row]]
        stage = "selection" if reason == BEYOND else "duplicates"
        document, position = int(pictures["document"][row]), int(pictures["position"][row])
        identity = f"{read.identity(document)} {position}"
        ledger.drop(IMAGES, stage, reason, identity, partial(read.image, document, position))
    ledger.keep(PAGES, int(chosen.kept.sum()))
    ledger.keep(PARAGRAPHS, int(documents["paragraphs"][chosen.kept].sum()))
    ledger.keep(IMAGES, int(alive[chosen.kept].sum()))


class _Examples:
    """Reads a document again to show it in the ledger."""

    def __init__(self, work: str, documents: np.ndarray) -> None:
        self.work, self.documents = work, documents
        self.corpora: dict[int, Corpus] = {}

    def identity(self, row: int) -> str:
        entry = self.documents[row]
        return f"{entry['key'].decode()} {entry['digest'].decode()}"

    def page(self, row: int, instead: int) -> dict[str, Any]:
        document = self._read(row)
        detail = f"kept instead: {self._read(instead).meta['url']}" if instead >= 0 else ""
        return page_example(document.meta["url"], document.meta["title"], document.text, detail)

    def image(self, row: int, position: int) -> dict[str, Any]:
        document = self._read(row)
        reference = ImageReference(**document.meta["images"][position])
        picture = look_at(reference, document.images[position].data)
        return image_example(reference.url, document.meta["url"], picture)

    def _read(self, row: int) -> Document:
        task = int(self.documents["task"][row])
        if task not in self.corpora:
            self.corpora[task] = Corpus(task_folder(self.work, task))
        return self.corpora[task][int(self.documents["index"][row])]
