"""Recipe ``text``: 3.5 million words of real English, and three classification sets cut from the same texts.

State of the Union addresses (:mod:`.speeches`) and WordNet's glosses (:mod:`.wordnet`) as documents to train on, a part
of them held out by hash of their content, and labels that the sources themselves give.

    OUT/text  OUT/held_out           shards
    OUT/classification/supersense    train.jsonl test.jsonl labels.json; gloss → one of 45 lexicographer files
    OUT/classification/party  …/era  the same; paragraph of a speech → party of who spoke, half century

What is held out is the same everywhere: no test item of a classification set is in ``OUT/text``.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from ..document import Document, Text
from . import speeches, wordnet
from .evaluation_files import write_lines
from .speeches import Speech
from .splits import held_out, split, write_parts
from .wordnet import Synset


@dataclass
class Options:
    """What ``text`` writes.

    Args:
        held_out_every: one speech and one definition in this many is held out, by hash of name and words.
        text_characters: speeches are cut at the first paragraph end after this many characters.
        entries_per_document: dictionary entries of one gloss document.
        paragraph_words: shortest paragraph of a speech that becomes an item of a classification set.
        era_years: years of one label of ``era``.
        documents_per_shard: documents in a tar.
        cache: folder for fetched packages; default $KOSMOS_CACHE, else ~/.cache/kosmos.
    """

    held_out_every: int = 10
    text_characters: int = 2000
    entries_per_document: int = 20
    paragraph_words: int = 20
    era_years: int = 50
    documents_per_shard: int = 5000
    cache: str = ""


def build(out: Path, options: Options, progress: Progress) -> dict[str, Any]:
    """Write the whole corpus below ``out``; return counts for the report."""
    addresses, spoken = speeches.load(options.cache, progress)
    synsets, defined = wordnet.load(options.cache, progress)
    report: dict[str, Any] = {"sources": [spoken, defined], "documents": {}, "words": {}, "classification": {}}
    said = split(addresses, lambda speech: speech.name, options.held_out_every)
    meant = split(synsets, lambda synset: synset.definition, options.held_out_every)
    parts = {}
    for folder, some, others in zip(("text", "held_out"), said, meant, strict=True):
        documents = itertools.chain(speech_documents(some, options), gloss_documents(others, options))
        parts[folder] = _words(documents, report["words"], folder)
    write_parts(out, parts, options.documents_per_shard, report["documents"], progress)
    for name, items in labelled(addresses, synsets, options).items():
        report["classification"][name] = write_classification(out / "classification" / name, items)
    return report


def speech_documents(addresses: Iterable[Speech], options: Options) -> Iterator[Document]:
    """Speeches in parts of about ``text_characters`` characters."""
    for speech in addresses:
        meta = {"source": "sotu", "speech": speech.name, "year": speech.year, "party": speech.party}
        for number, part in enumerate(speeches.parts(speech.text, options.text_characters)):
            yield Document(f"speech/{speech.name}-{number:03d}", [Text(part)], meta)


def gloss_documents(synsets: Sequence[Synset], options: Options) -> Iterator[Document]:
    """Pages of a dictionary ordered by meaning: a line per synset, its words, part of speech and gloss."""
    for start in range(0, len(synsets), options.entries_per_document):
        page = synsets[start : start + options.entries_per_document]
        lines = (f"{', '.join(synset.words)} ({synset.part_of_speech}): {synset.gloss}" for synset in page)
        yield Document(f"gloss/{page[0].name}", [Text("\n".join(lines))], {"source": "wordnet"})


Item = tuple[str, str, bool]
"""Text, label, and whether it is for testing."""


def labelled(addresses: Iterable[Speech], synsets: Iterable[Synset], options: Options) -> dict[str, list[Item]]:
    """The items of each classification set; a paragraph is for testing when its whole speech is."""
    every = options.held_out_every
    paragraphs = [
        (speech, paragraph, held_out(speech.name, every))
        for speech in addresses
        for paragraph in speech.paragraphs
        if len(paragraph.split()) >= options.paragraph_words
    ]
    return {
        "supersense": [(synset.gloss, synset.supersense, held_out(synset.definition, every)) for synset in synsets],
        "party": [(text, speech.party, test) for speech, text, test in paragraphs],
        "era": [(text, _era(speech.year, options.era_years), test) for speech, text, test in paragraphs],
    }


def write_classification(folder: Path, items: Sequence[Item]) -> dict[str, Any]:
    """Write ``train.jsonl``, ``test.jsonl`` and ``labels.json``; return the counts, by reason for what is left out.

    A label that is not in both parts cannot be learned or cannot be tested. A text that comes twice counts once, and in
    training only when both parts have it: a test item must be new.
    """
    folder.mkdir(parents=True)
    left_out: Counter[str] = Counter()
    parts = {name: [item for item in items if item[2] == test] for name, test in (("train", False), ("test", True))}
    labels = sorted(set.intersection(*({label for _, label, _ in part} for part in parts.values())))
    seen: set[str] = set()
    report: dict[str, Any] = {"labels": len(labels)}
    for name, part in parts.items():
        rows = []
        for text, label, _ in part:
            if label not in labels:
                left_out[f"label in {name} only"] += 1
            elif text in seen:
                left_out["text comes twice"] += 1
            else:
                rows.append({"text": text, "label": label})
            seen.add(text)
        report[name] = write_lines(folder / f"{name}.jsonl", rows)
        report[f"{name}_majority"] = round(max(Counter(row["label"] for row in rows).values()) / len(rows), 4)
    (folder / "labels.json").write_text(json.dumps(labels, indent=1) + "\n", encoding="utf-8")
    return {**report, "left_out": dict(left_out)}


def _era(year: int, years: int) -> str:
    first = year // years * years
    return f"{first}-{first + years - 1}"


def _words(documents: Iterable[Document], counts: dict[str, int], name: str) -> Iterator[Document]:
    counts[name] = 0
    for document in documents:
        counts[name] += len(document.text.split())
        yield document
