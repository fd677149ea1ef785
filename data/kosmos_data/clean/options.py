"""Settings of ``kosmos data clean``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from ..web.options import Execution
from ..web.rules import HeldOut, NearRules


@dataclass
class CleanOptions:
    """Which documents of a corpus stay.

    Args:
        format: how the source is read: empty for our shards, and ``text`` for anything else; else a format of ``kosmos
            data import``.
        images: folder of the picture files, for formats that keep them apart.
        field: name of the field that holds the text, for formats in which it may have any name.
        leave_out: names of sources whose documents go, whatever their case: KOSMOS-1 leaves ``Github``, ``ArXiv``,
            ``StackExchange`` and ``PubMed Central`` out of the Pile.
        source_field: where ``meta`` names a document's source; empty: the first of ``pile_set_name``,
            ``redpajama_set_name``, ``source``, ``dataset`` that it has.
        person: ``drop`` leaves out pictures whose text holds a tag of capitals such as ``<PERSON>``, which Conceptual
            Captions has in place of names (KOSMOS-1 drops them); ``keep`` keeps them.
        language: language to keep, as py3langid names it (KOSMOS-1: English); ``any``: all.
        language_confidence: a text stays if it is in the language with at least this probability (ours, as for pages).
        language_words: a text of fewer words is too short to be sure of, and goes only if it is in another language
            with that probability. Ours: of 842 English glosses below five words the other rule drops 89 %, this none.
        held_out: evaluation data that no document may contain.
        near_duplicates: whether near-duplicates go; exact ones always do.
        duplicates: what counts as near.
        tasks: parts of the work, each done again whole when it fails; 0: one per shard, eight for other sources.
        documents_per_shard: a shard of the result is full with so many documents …
        bytes_per_shard: … or so many bytes, whichever comes first.
        examples: dropped documents kept per rule in the ledger.
        execution: where it runs.
    """

    format: str = ""
    images: str | None = None
    field: str | None = None
    leave_out: list[str] = dataclasses.field(default_factory=list)
    source_field: str = ""
    person: Literal["drop", "keep"] = "drop"
    language: str = "en"
    language_confidence: float = 0.8
    language_words: int = 20
    held_out: HeldOut = dataclasses.field(default_factory=HeldOut)
    near_duplicates: bool = True
    duplicates: NearRules = dataclasses.field(default_factory=NearRules)
    tasks: int = 0
    documents_per_shard: int = 10_000
    bytes_per_shard: int = 500_000_000
    examples: int = 8
    execution: Execution = dataclasses.field(default_factory=Execution)

    def __post_init__(self) -> None:
        if not 0 <= self.language_confidence <= 1:
            raise ValueError(f"language_confidence is {self.language_confidence}; it is a probability, 0 to 1")
        if self.tasks < 0:
            raise ValueError(f"tasks is {self.tasks}; 0 means one per shard")
