"""Whether texts that were written for somebody are told apart from those for another, by a classifier of words.

The classifier is multinomial naive Bayes over lower-case words (McCallum and Nigam 1998), one class for each text under
the first key of a persona (each president); real texts train it, of which the judged model may know those of training.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kosmos.atomic import write_atomically
from kosmos.modalities import stack_inputs
from kosmos.surrogates import whole
from kosmos_data.document import Document, Persona, Text

from .metrics import mean_score
from .statistics import interval

_WORD = re.compile(r"[^\W\d_]+")


class WordClassifier:
    """Naive Bayes over words, every class as likely as another.

    Args:
        texts: (class, text) of real texts.
        smoothing: added to each count.
    """

    def __init__(self, texts: Iterable[tuple[str, str]], smoothing: float = 0.1) -> None:
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for name, text in texts:
            counts[name].update(words(text))
        known = {word for counted in counts.values() for word in counted}
        self.classes = sorted(counts)
        self._logs = {}
        for name, counted in counts.items():
            total = counted.total() + smoothing * len(known)
            logs = {word: float(np.log((counted[word] + smoothing) / total)) for word in counted}
            self._logs[name] = logs, float(np.log(smoothing / total))
        self._known = known

    def score(self, text: str, name: str) -> float:
        """Return the log-likelihood of a text under a class; words that no text had say nothing."""
        logs, rare = self._logs[name]
        return sum(logs.get(word, rare) for word in words(text) if word in self._known)

    def __contains__(self, name: str) -> bool:
        return name in self._logs


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, in order."""
    return [found.lower() for found in _WORD.findall(text)]


def persona_of(document: Document) -> Persona:
    """Return the first persona of a document; ValueError without one."""
    found = next((segment for segment in document.segments if isinstance(segment, Persona)), None)
    if found is None:
        raise ValueError(f"{document.key} has no persona")
    return found


def class_of(document: Document) -> str:
    """Return the text under the first key of a document's persona."""
    return persona_of(document).pairs()[0][1]


def tell_apart(
    model: Any,
    processor: Any,
    train: Iterable[Document],
    right: Sequence[Document],
    wrong: Sequence[Document],
    max_new_tokens: int,
    batch: int,
    seed: int,
    by_hand: Mapping[str, float] | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Write a text for each document under both personas and ask the classifier which of the two persons wrote it.

    Args:
        train: real texts, for the classifier.
        right, wrong: the same documents under their own and another persona.
        max_new_tokens, batch: length of a text; texts at a time.
        seed: of the intervals.
        by_hand: further inputs of ``generate()``: ``alpha`` of a model with attention routing.
        out: folder for the texts, ``right.jsonl``, ``wrong.jsonl`` and ``real.jsonl``, as ``kosmos eval rate`` reads
            them: under each stands the right persona. None: they are not kept.

    Returns:
        Shares of texts that are likelier under the right person than under the other: ``real`` texts, those written for
        the ``right`` and for the ``wrong`` one (the control: personas swapped), each with its 95 % interval.

    Raises:
        ValueError: somebody of whom the classifier has read nothing.
    """
    judge = WordClassifier((class_of(document), text_of(document)) for document in train)
    pairs = [(class_of(one), class_of(other)) for one, other in zip(right, wrong, strict=True)]
    for name in sorted({name for pair in pairs for name in pair}):
        if name not in judge:
            raise ValueError(f"the texts of --train have no persona {name!r}; give the corpus that trained the model")
    texts = {"real": [text_of(document) for document in right]}
    for name, documents in (("right", right), ("wrong", wrong)):
        texts[name] = list(write(model, processor, documents, max_new_tokens, batch, by_hand))
    if out is not None:
        _keep(out, right, texts)
    report: dict[str, Any] = {"texts": len(pairs), "classes": len(judge.classes)}
    for name, given in texts.items():
        leads = [
            judge.score(text, one) - judge.score(text, other) for text, (one, other) in zip(given, pairs, strict=True)
        ]
        score = mean_score("told apart", [(lead > 0) + 0.5 * (lead == 0) for lead in leads])
        low, high = interval(score, seed=seed)
        report[name] = {"share": score.value, "low": low, "high": high}
    return report


def _keep(out: Path, right: Sequence[Document], texts: Mapping[str, Sequence[str]]) -> None:
    """Write what people are to compare, a file for each way of writing."""
    for name, given in texts.items():
        rows = [
            {"key": document.key, "prompt": "\n".join(map(": ".join, persona_of(document).pairs())),
             "context": "".join(one.text for one in _asked(document) if isinstance(one, Text)), "text": text}
            for document, text in zip(right, given, strict=True)
        ]  # fmt: skip
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomically(out / f"{name}.jsonl", whole("".join(lines)))


def text_of(document: Document) -> str:
    """Return what a document's person says: its supervised texts."""
    return "".join(one.text for one in document.segments if isinstance(one, Text) and one.supervised)


@torch.no_grad()
def write(
    model: Any,
    processor: Any,
    documents: Sequence[Document],
    max_new_tokens: int,
    batch: int,
    by_hand: Mapping[str, float] | None = None,
) -> Iterator[str]:
    """Draw a text for each document from what stands before its first supervised text."""
    model.take_rules(processor)
    tokenizer = processor.tokenizer
    for start in range(0, len(documents), batch):
        prompts = [
            processor.encode([[tokenizer.bos_token_id], *_asked(document)])
            for document in documents[start : start + batch]
        ]
        width = max(len(prompt.ids) for prompt in prompts)
        ids = torch.full((len(prompts), width), tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt.ids) :] = torch.tensor(prompt.ids)
            mask[row, width - len(prompt.ids) :] = 1
        inputs = {"input_ids": ids, "attention_mask": mask, **stack_inputs(one for p in prompts for one in p.placed)}
        inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
        written = model.generate(**inputs, **(by_hand or {}), do_sample=True, max_new_tokens=max_new_tokens)[:, width:]
        yield from tokenizer.batch_decode(written, skip_special_tokens=True)


def _asked(document: Document) -> list[Any]:
    first = next(at for at, one in enumerate(document.segments) if isinstance(one, Text) and one.supervised)
    return list(document.segments[:first])
