"""BLEU-1..4, ROUGE-L and CIDEr-D over tokenised captions, as the COCO caption tools define them.

Why our own: the official package (pycocoevalcap) needs Java and 100 MB for what is arithmetic over n-grams. On
pre-tokenised text these functions equal it to 1e-9 (tests/eval/test_captions.py). Sources: Papineni et al. 2002; Lin
2004; Vedantam et al. 2015 (arXiv 1411.5726); the implementation details come from the figures those tools publish.

What the names mean there: "CIDEr" is CIDEr-D (clipped counts, Gaussian length penalty with sigma 6, times 10) whose
document frequencies come from the *evaluated references*, so it must never be sharded and averaged nor read on a
handful of items; ROUGE-L takes beta 1.2 with the best precision and the best recall over the references; BLEU uses
the closest reference length.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_ORDER = 4
_SIGMA = 6.0
_BETA = 1.2
# The official BLEU guards its divisions with these two constants; they show in per-image scores.
_SMALL, _TINY = 1e-9, 1e-15

Ngram = tuple[str, ...]


@dataclass(frozen=True)
class CorpusScore:
    """A corpus value and the score of each image, in input order (BLEU's corpus value is not their mean)."""

    corpus: float
    per_item: np.ndarray  # (N,) float64


@dataclass(frozen=True)
class BleuCounts:
    """Sufficient statistics of corpus BLEU, one row per image, so that a bootstrap can resum them.

    correct, guess: (N, 4) clipped matches and candidate n-grams; candidate, reference: (N,) lengths in tokens.
    """

    correct: np.ndarray
    guess: np.ndarray
    candidate: np.ndarray
    reference: np.ndarray


def ngrams(tokens: Sequence[str]) -> Counter[Ngram]:
    """Counts of all n-grams of length 1 to 4."""
    return Counter(tuple(tokens[i : i + n]) for n in range(1, MAX_ORDER + 1) for i in range(len(tokens) - n + 1))


def bleu_counts(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> BleuCounts:
    """Match counts of each candidate against its references (all tokenised, blank-separated)."""
    correct = np.zeros((len(candidates), MAX_ORDER))
    guess = np.zeros_like(correct)
    lengths = np.zeros((len(candidates), 2))
    for row, (candidate, refs) in enumerate(zip(candidates, references, strict=True)):
        tokens = candidate.split()
        best: Counter[Ngram] = Counter()
        for ref in refs:
            best |= ngrams(ref.split())
        for gram, count in ngrams(tokens).items():
            correct[row, len(gram) - 1] += min(count, best[gram])
        guess[row] = [max(0, len(tokens) - n) for n in range(MAX_ORDER)]
        closest = min((abs(len(ref.split()) - len(tokens)), len(ref.split())) for ref in refs)[1]
        lengths[row] = len(tokens), closest
    return BleuCounts(correct, guess, lengths[:, 0], lengths[:, 1])


def bleu_from_counts(
    correct: np.ndarray, guess: np.ndarray, candidate: np.ndarray, reference: np.ndarray
) -> np.ndarray:
    """BLEU-1..4 from counts of shape (..., 4) and lengths (...); the result has shape (..., 4)."""
    precision = np.cumprod((correct + _TINY) / (guess + _SMALL), axis=-1)
    score = precision ** (1.0 / np.arange(1, MAX_ORDER + 1))
    ratio = (candidate + _TINY) / (reference + _SMALL)
    penalty = np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)
    return score * penalty[..., None]


def bleu(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[CorpusScore]:
    """BLEU-1, 2, 3 and 4 of tokenised captions."""
    counts = bleu_counts(candidates, references)
    per_item = bleu_from_counts(counts.correct, counts.guess, counts.candidate, counts.reference)
    corpus = bleu_from_counts(
        counts.correct.sum(0), counts.guess.sum(0), counts.candidate.sum(), counts.reference.sum()
    )
    return [CorpusScore(float(corpus[n]), per_item[:, n]) for n in range(MAX_ORDER)]


def rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> CorpusScore:
    """Mean ROUGE-L of tokenised captions."""
    scores = np.array([_rouge_l_one(c, refs) for c, refs in zip(candidates, references, strict=True)])
    return CorpusScore(float(scores.mean()), scores)


def _rouge_l_one(candidate: str, references: Sequence[str]) -> float:
    tokens = candidate.split(" ")
    common = [(longest_common_subsequence(tokens, ref.split(" ")), len(ref.split(" "))) for ref in references]
    precision = max(lcs / len(tokens) for lcs, _ in common)
    recall = max(lcs / length for lcs, length in common)
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence of two token lists."""
    row = [0] * (len(second) + 1)
    for token in first:
        diagonal = 0
        for j, other in enumerate(second, start=1):
            above = row[j]
            row[j] = diagonal + 1 if token == other else max(above, row[j - 1])
            diagonal = above
    return row[-1]


def cider(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> CorpusScore:
    """CIDEr-D of tokenised captions; document frequencies over the given references (one document = one image)."""
    counted = [[ngrams(ref.split()) for ref in refs] for refs in references]
    frequency: Counter[Ngram] = Counter()
    for refs in counted:
        frequency.update(set().union(*refs))
    log_documents = math.log(len(counted))
    scores = [
        _cider_one(ngrams(candidate.split()), refs, frequency, log_documents)
        for candidate, refs in zip(candidates, counted, strict=True)
    ]
    per_item = np.array(scores)
    return CorpusScore(float(per_item.mean()), per_item)


def _cider_one(
    candidate: Counter[Ngram], references: Sequence[Counter[Ngram]], frequency: Counter[Ngram], log_documents: float
) -> float:
    weights, norms, length = _tf_idf(candidate, frequency, log_documents)
    total = np.zeros(MAX_ORDER)
    for reference in references:
        ref_weights, ref_norms, ref_length = _tf_idf(reference, frequency, log_documents)
        similarity = np.zeros(MAX_ORDER)
        for gram, weight in weights.items():
            other = ref_weights.get(gram, 0.0)
            similarity[len(gram) - 1] += min(weight, other) * other
        norm = norms * ref_norms
        similarity = np.divide(similarity, norm, out=similarity, where=norm > 0)
        total += similarity * math.exp(-((length - ref_length) ** 2) / (2 * _SIGMA**2))
    return float(10.0 * total.mean() / len(references))


def _tf_idf(
    counts: Counter[Ngram], frequency: Counter[Ngram], log_documents: float
) -> tuple[dict[Ngram, float], np.ndarray, int]:
    """Weights per n-gram, their norm per order, and the length, which the official tools count in *bigrams*."""
    weights = {gram: n * (log_documents - math.log(max(1, frequency[gram]))) for gram, n in counts.items()}
    squares = np.zeros(MAX_ORDER)
    for gram, weight in weights.items():
        squares[len(gram) - 1] += weight**2
    bigrams = sum(n for gram, n in counts.items() if len(gram) == 2)
    return weights, np.sqrt(squares), bigrams
