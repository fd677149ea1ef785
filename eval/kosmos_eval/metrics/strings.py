"""Answer metrics for single strings: exact match, token F1 (SQuAD), ANLS (DocVQA), accuracy.

Sources: Rajpurkar et al. 2016 for the normalisation of exact match and F1 (WebSRC reports both); Biten et al. 2019
(arXiv 1905.13648) for ANLS with threshold 0.5.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ANLS_THRESHOLD = 0.5


def normalise(text: str) -> str:
    """SQuAD's: lower case, no punctuation, no articles, single blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction equals any answer after :func:`normalise`."""
    return float(normalise(prediction) in {normalise(answer) for answer in answers})


def f1(prediction: str, answers: Sequence[str]) -> float:
    """The best token F1 over the answers."""
    return max(_f1_one(normalise(prediction).split(), normalise(answer).split()) for answer in answers)


def _f1_one(prediction: list[str], answer: list[str]) -> float:
    if not prediction or not answer:
        return float(prediction == answer)
    common = sum((Counter(prediction) & Counter(answer)).values())
    return 2 * common / (len(prediction) + len(answer))


def anls(prediction: str, answers: Sequence[str]) -> float:
    """The best normalised Levenshtein similarity over the answers, 0 below one half."""
    scores = []
    for answer in answers:
        first, second = prediction.strip().lower(), answer.strip().lower()
        longest = max(len(first), len(second))
        distance = levenshtein(first, second) / longest if longest else 0.0
        scores.append(1 - distance if distance < _ANLS_THRESHOLD else 0.0)
    return max(scores)


def levenshtein(first: str, second: str) -> int:
    """Edit distance with unit costs."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(second, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def accuracy(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction is exactly one of the answers (case and surrounding blanks do not count)."""
    return float(prediction.strip().lower() in {answer.strip().lower() for answer in answers})
