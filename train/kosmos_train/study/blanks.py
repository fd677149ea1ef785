"""Blanks cut into held-out text: which of a few words, or phrases, stood here? Zero-shot, in each objective's own form.

The label is what the author wrote. Sets of one-token words and of phrases of several tokens exercise both ways of
:class:`kosmos_data.cloze.Cloze`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kosmos.atomic import write_atomically
from kosmos_data import Document
from kosmos_data.cloze import MASK, Cloze
from kosmos_data.reader import Corpus
from kosmos_eval import statistics
from kosmos_eval.metrics import mean_score

LEAST_CONTEXT = 3
BATCH_TEXTS = 16


@dataclass
class BlankSet:
    """Which words are blanked out, and where."""

    words: list[str] = field(default_factory=list)
    """The classes: words or phrases, written as in the text."""
    keys: str = ""
    """Only documents whose key begins so."""
    items: int = 300
    """At most so many blanks, drawn evenly from all."""
    before: int = 24
    """Words of the line kept before the blank, at most."""
    behind: int = 12
    """Words kept behind it."""


@dataclass(frozen=True)
class Blank:
    """A line with ``<mask>``, and what stood there."""

    text: str
    answer: str


def find_blanks(documents: Iterator[Document], wanted: BlankSet) -> list[Blank]:
    """At most one blank a line, at an occurrence drawn at random, with some words on both sides.

    Raises:
        ValueError: fewer than two classes, or text without any of them.
    """
    if len(wanted.words) < 2:
        raise ValueError(f"cloze: words={wanted.words} must be at least two")
    rng = np.random.default_rng([0, *b"blanks"])
    phrases = {tuple(phrase.split()): phrase for phrase in wanted.words}
    found = []
    for document in documents:
        if not document.key.startswith(wanted.keys):
            continue
        for line in document.text.splitlines():
            words = line.split()
            places = [
                (at, phrase)
                for at in range(LEAST_CONTEXT, len(words) - LEAST_CONTEXT)
                for phrase in phrases
                if tuple(words[at : at + len(phrase)]) == phrase and at + len(phrase) <= len(words) - LEAST_CONTEXT
            ]
            if places:
                at, phrase = places[int(rng.integers(len(places)))]
                left = words[max(0, at - wanted.before) : at]
                right = words[at + len(phrase) : at + len(phrase) + wanted.behind]
                found.append(Blank(" ".join([*left, MASK, *right]), phrases[phrase]))
    if not found:
        raise ValueError(f"cloze: none of {wanted.words} stands in a document whose key begins with {wanted.keys!r}")
    chosen = rng.permutation(len(found))[: wanted.items]
    return [found[index] for index in sorted(chosen)]


def write_blanks(sets: dict[str, BlankSet], held_out: str, folder: Path) -> None:
    """``folder/NAME.json`` for each set that is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, wanted in sets.items():
        path = folder / f"{name}.json"
        if not path.is_file():
            corpus = Corpus(held_out)
            blanks = find_blanks((corpus[index] for index in range(len(corpus))), wanted)
            rows = [{"text": blank.text, "answer": blank.answer} for blank in blanks]
            write_atomically(path, json.dumps({"classes": wanted.words, "items": rows}, indent=1))


def guesses(path: Path) -> dict[str, float]:
    """What is right without looking: chance, and always the commonest answer."""
    found = json.loads(path.read_text(encoding="utf-8"))
    counts = Counter(row["answer"] for row in found["items"])
    return {
        "chance": 1 / len(found["classes"]),
        "majority": counts.most_common(1)[0][1] / len(found["items"]),
        "n": len(found["items"]),
    }


@torch.no_grad()
def fill_blanks(model: Any, processor: Any, path: Path, objective: str, bidirectional: bool = True) -> dict[str, Any]:
    """Accuracy with its 95 % interval, and whether the wordings are single tokens.

    Args:
        objective: in whose form the blanks are asked; ``bidirectional`` as the model was trained with it.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    two_positions = getattr(model.config.text_config, "position_type", None) == "learned_2d"
    verbalizers = {word: word for word in found["classes"]}
    cloze = Cloze(processor, verbalizers, two_positions, objective=objective, bidirectional=bidirectional)
    right: list[float] = []
    for batch in _batches(found["items"], BATCH_TEXTS):
        best = cloze.scores(model, [row["text"] for row in batch]).argmax(1).tolist()
        right += [float(cloze.classes[at] == row["answer"]) for at, row in zip(best, batch, strict=True)]
    score = mean_score("accuracy", right)
    low, high = statistics.interval(score)
    return {"value": score.value, "low": low, "high": high, "n": len(right), "single_token": cloze.single_token}


def _batches(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
