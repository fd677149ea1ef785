"""Did the training data contain the test? A check of evaluation items against shards, by image content and by n-grams.

An item is *image-contaminated* when the bytes of one of its images occur in the shards, *text-contaminated* when its
text (prompt fields and answers) shares a run of 13 words with a training text, or is contained in one whole if it is
shorter than 13 words but at least 8. Source: GPT-3 (Brown et al. 2020, appendix C) for the 13-grams. Byte equality
finds copies, not re-encoded or cropped pictures; near-duplicates are the business of corpus building.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kosmos.segments import Audio, Image, Video
from kosmos_data import BadSample, Corpus, overlap

from . import tasks
from .items import Item, content_hash
from .readers import load_items


@dataclass
class ContaminationReport:
    """Which items of a task occur in which documents.

    Attributes:
        images, texts: item id → the first document (``shard folder:key``) that holds it.
        unreadable: training documents that could not be read.
    """

    task: str
    items: int
    documents: int = 0
    unreadable: int = 0
    images: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        contaminated = len({*self.images, *self.texts})
        return asdict(self) | {"contaminated_items": contaminated, "share": contaminated / self.items}


def check(task: str | Path, data: str | Path, shards: Sequence[str | Path]) -> ContaminationReport:
    """Look for a task's evaluated items in training shards.

    Args:
        task: name or YAML path.
        data: the folder that the task's paths are relative to.
        shards: corpus folders (each with ``index.json``).

    Raises:
        FileNotFoundError, ValueError: no such task, data or shards.
    """
    loaded = tasks.load(task)
    items = load_items(loaded, data, loaded.split)
    report = ContaminationReport(loaded.name, len(items))
    images: dict[str, list[str]] = {}
    grams: dict[int, list[str]] = {}
    for item in items:
        for path in (*item.images, *item.candidate_images):
            images.setdefault(content_hash(path), []).append(item.id)
        for gram in item_grams(item):
            grams.setdefault(gram, []).append(item.id)
    lengths = overlap.LENGTHS if grams else ()
    for folder in shards:
        corpus = Corpus(folder)
        for index in range(len(corpus)):
            report.documents += 1
            try:
                document = corpus[index]
            except BadSample:
                report.unreadable += 1
                continue
            place = f"{folder}:{document.key}"
            files = (segment.data for segment in document.segments if isinstance(segment, Image | Audio | Video))
            for data in files:
                digest = hashlib.sha256(data).hexdigest() if isinstance(data, bytes) else content_hash(Path(data))
                for owner in images.get(digest, ()):
                    report.images.setdefault(owner, place)
            for gram in overlap.grams(overlap.words(document.text), lengths):
                for owner in grams.get(gram, ()):
                    report.texts.setdefault(owner, place)
    return report


def item_grams(item: Item) -> set[int]:
    """Hashes of the item's 13-grams; of the whole text if it is shorter; none below eight words."""
    texts = [" ".join([*item.fields.values(), answer]) for answer in dict.fromkeys(item.answers)]
    return set().union(*(overlap.text_grams(text) for text in texts))
