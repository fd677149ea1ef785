"""Recipe ``instructions``: questions and orders with answers, to tune on the answers alone (KOSMOS-1, section 3.3).

Dialogues of ChatterBot's corpus, "define this word" from WordNet, and the Debian FAQ. The paper uses Unnatural
Instructions and FLANv2; no package registry has these, and what is here is thin: it shows the chain, it makes no
assistant. Turns are written as the chat template writes them: ``Question: … Answer:``, not supervised, and the answer.

    OUT/instructions  OUT/held_out          shards; in a run: objective: {name: causal, loss: supervised}
"""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.progress import Progress

from ..document import Document
from ..turns import turn
from . import packages, wordnet
from .packages import PackageUnavailable
from .splits import lot, split, write_parts
from .wordnet import Synset

_CHATTERBOT = ("1.3.3", "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154")
_FAQ = ("11.1", "427426e0cfa6888622fc1d72631071cb4b5a1f86ccde722e7820bcef284de5d0")
_X = "{http://www.w3.org/1999/xhtml}"


@dataclass
class Options:
    """What ``instructions`` writes.

    Args:
        collections: which of dialogues (pip), words (npm) and faq (apt).
        optional: leave out a collection whose package cannot be had, and say why in the report, instead of ending.
        languages: of the dialogues, by their names in the ChatterBot corpus (``english``, ``german``, …).
        definitions: questions about words; of 118,000 meanings those with the smallest hashes.
        answer_words: an answer of the FAQ ends with the last paragraph before this many words.
        held_out_every: one dialogue, meaning or FAQ question in this many is held out, by hash of its words.
        documents_per_shard: documents in a tar.
        strict: refuse another version of the Debian FAQ than the one that the recipe was written for.
        cache: folder for fetched packages; default $KOSMOS_CACHE, else ~/.cache/kosmos.
    """

    collections: list[str] = field(default_factory=lambda: ["dialogues", "words", "faq"])
    optional: bool = False
    languages: list[str] = field(default_factory=lambda: ["english"])
    definitions: int = 10_000
    answer_words: int = 200
    held_out_every: int = 10
    documents_per_shard: int = 5000
    strict: bool = False
    cache: str = ""


@dataclass(frozen=True, slots=True)
class Talk:
    """Questions and answers in turn. ``group`` is what the split goes by: all talks of one group are on one side."""

    key: str
    group: str
    turns: tuple[tuple[str, str], ...]


def build(out: Path, options: Options, progress: Progress) -> dict[str, Any]:
    """Write the whole corpus below ``out``; return counts for the report."""
    skipped: Counter[str] = Counter()
    sources: list[dict[str, Any]] = []
    talks: dict[str, list[Talk]] = {}
    unavailable: dict[str, str] = {}
    for name in options.collections:
        try:
            talks[name] = _read(name, options, skipped, sources, progress)
        except PackageUnavailable as error:
            unavailable[name] = str(error)
            if not options.optional or len(unavailable) == len(options.collections):
                raise
    report: dict[str, Any] = {"sources": sources, "talks": {name: len(found) for name, found in talks.items()}}
    report |= {"left_out": dict(skipped), "unavailable": unavailable, "documents": {}}
    read = [(name, talk) for name, found in talks.items() for talk in found]
    train, test = split(read, lambda one: one[1].group, options.held_out_every)
    made = {"instructions": itertools.starmap(document, train), "held_out": itertools.starmap(document, test)}
    write_parts(out, made, options.documents_per_shard, report["documents"], progress)
    return report


def _read(
    name: str, options: Options, skipped: Counter[str], sources: list[dict[str, Any]], progress: Progress
) -> list[Talk]:
    """The talks of one collection; its package is added to ``sources``.

    Raises:
        ValueError: no such collection.
        PackageUnavailable: a package cannot be fetched (see :mod:`.packages`).
    """
    if name == "dialogues":
        version, sha256 = _CHATTERBOT
        spoken = packages.pip("chatterbot-corpus", version, options.cache, sha256=sha256, progress=progress)
        sources.append(packages.describe(spoken))
        return list(dialogues(spoken / "chatterbot_corpus" / "data", options.languages, skipped))
    if name == "words":
        synsets, words = wordnet.load(options.cache, progress)
        sources.append(words)
        return definitions(synsets, options.definitions)
    if name == "faq":
        version, sha256 = _FAQ
        pinned: dict[str, Any] = {"version": version, "strict": options.strict, "progress": progress}
        faq = packages.apt("debian-faq", options.cache, sha256, **pinned)
        sources.append(packages.describe(faq))
        return list(questions(faq / "usr/share/doc/debian/FAQ", options.answer_words, skipped))
    raise ValueError(f"no collection {name!r} of instructions; known: dialogues, words, faq")


def document(source: str, talk: Talk) -> Document:
    """A talk as it is trained on; only the answers are supervised."""
    last = len(talk.turns) - 1
    segments = [part for place, pair in enumerate(talk.turns) for part in turn(*pair, last=place == last)]
    return Document(f"{source}/{talk.key}", segments, {"source": source})


def dialogues(folder: Path, languages: Sequence[str], skipped: Counter[str]) -> Iterator[Talk]:
    """ChatterBot's YAML files: lists of lines said in turn; a last line without a reply is dropped.

    Raises:
        ValueError: the corpus has no such language.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # of libyaml where it is there, ten times as fast
    for language in languages:
        paths = sorted((folder / language).glob("*.yml"))
        if not paths:
            known = ", ".join(sorted(path.name for path in folder.iterdir()))
            raise ValueError(f"no dialogues in {language!r}; known: {known}")
        for path in paths:
            lists = yaml.load(path.read_text(encoding="utf-8"), loader)["conversations"]
            for number, lines in enumerate(lists):
                if not isinstance(lines, list) or len(lines) < 2 or not all(isinstance(line, str) for line in lines):
                    skipped["not a dialogue"] += 1
                    continue
                if any("```" in line for line in lines):  # a turn is one line, a listing is not
                    skipped["has a listing"] += 1
                    continue
                said = [" ".join(line.split()) for line in lines]
                key = f"{language}-{path.stem.replace('.', '_')}-{number:04d}"
                yield Talk(key, said[0].lower(), tuple(zip(said[::2], said[1::2], strict=False)))


def definitions(synsets: Iterable[Synset], count: int) -> list[Talk]:
    """Define a word, name the word for a definition, use it in a sentence; only words with one meaning.

    The split is that of the recipe ``text``: by definition.
    """
    synsets = list(synsets)
    meanings = Counter(word.lower() for synset in synsets for word in synset.words)
    single = [synset for synset in synsets if meanings[synset.words[0].lower()] == 1]
    chosen = sorted(single, key=lambda synset: lot(synset.name))[:count]
    return [Talk(synset.name, synset.definition, (_ask(synset),)) for synset in sorted(chosen, key=lambda s: s.name)]


def _ask(synset: Synset) -> tuple[str, str]:
    word = synset.words[0]
    fitting = [example for example in synset.examples if word.lower() in example.lower()]
    kinds = [
        (f'Define "{word}".', synset.definition),
        (f'What does "{word}" mean?', synset.definition),
        (f'Which {synset.part_of_speech} means "{synset.definition}"?', word),
        *((f'Use "{word}" in a sentence.', example) for example in fitting[:1]),
    ]
    return kinds[lot(f"kind {synset.name}")[0] % len(kinds)]


def questions(folder: Path, answer_words: int, skipped: Counter[str]) -> Iterator[Talk]:
    """The Debian FAQ (DocBook's XHTML): sections whose title is a question, with the paragraphs that begin them."""
    for path in sorted(folder.glob("*.html")):
        for number, section in enumerate(ElementTree.parse(path).iter(f"{_X}div")):
            if section.get("class") != "section":
                continue
            title = next((_text(part) for part in section.iter() if re.fullmatch(rf"{_X}h\d", part.tag)), "")
            question = re.sub(r"^[\d.]+\s+", "", title)
            answer = _answer(section, answer_words)
            if not question.endswith("?"):
                skipped["title is no question"] += 1
            elif not answer:
                skipped["no paragraph of that length"] += 1
            else:
                key = f"{path.name.partition('.')[0]}-{number:04d}"
                yield Talk(key, question.lower(), ((question, answer),))


def _answer(section: ElementTree.Element, most: int) -> str:
    """The paragraphs before the first list or listing, as one line of at most ``most`` words."""
    paragraphs: list[str] = []
    for part in section:
        if part.get("class") == "titlepage":
            continue
        text = _text(part)
        words = sum(len(paragraph.split()) for paragraph in [*paragraphs, text])
        if part.tag != f"{_X}p" or text.endswith(":") or words > most:
            break
        paragraphs.append(text)
    return " ".join(paragraphs)


def _text(element: ElementTree.Element) -> str:
    """In one line, without the numbers of footnotes."""
    return " ".join(re.sub(r"\[\d+\]", "", "".join(element.itertext())).split())
