"""The metrics by name. Each turns predictions and references into per-item statistics whose *sum* determines the score.

That one form (a mean is the sum of values over the sum of ones, corpus BLEU a function of summed match counts) gives
the corpus value, the per-item values and the bootstrap of every metric without a special case.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from kosmos.suggest import suggest

from . import auc, captions, coco_java, options, ptb, strings, vqa, writing

References = Sequence[Sequence[str]]


@dataclass(frozen=True)
class MetricScore:
    """One metric over N items.

    statistics: (N, K) float64; ``combine`` maps summed statistics of shape (..., K) to scores of shape (...).
    divisible: whether a part of the items has a score of its own by summing theirs.
    """

    name: str
    statistics: np.ndarray
    combine: Callable[[np.ndarray], np.ndarray]
    divisible: bool = True

    @property
    def value(self) -> float:
        return float(self.combine(self.statistics.sum(axis=0)))

    @property
    def per_item(self) -> np.ndarray:
        return self.combine(self.statistics)

    @property
    def n(self) -> int:
        return len(self.statistics)


def mean_score(name: str, values: Sequence[float] | np.ndarray) -> MetricScore:
    """A metric that is the mean of its items."""
    column = np.asarray(values, dtype=np.float64)
    return MetricScore(name, np.stack([column, np.ones_like(column)], axis=-1), _mean)


def _mean(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


def _share(sums: np.ndarray) -> np.ndarray:
    """A mean that is 0 where there was nothing to count."""
    return sums[..., 0] / np.maximum(sums[..., 1], 1)


def roc_auc(confidences: Sequence[float], positive: Sequence[bool]) -> MetricScore:
    """Area under the ROC curve; the per-item values are placement values (see auc.py).

    Raises:
        ValueError: all items are of one class.
    """
    values = auc.placements(confidences, positive)
    area = float(values[np.asarray(positive, dtype=bool)].mean())
    return MetricScore(
        "roc_auc", auc.statistics(values, positive), lambda sums: auc.combine(sums, area), divisible=False
    )


_PER_ANSWER: dict[str, Callable[[str, Sequence[str]], float]] = {
    "vqa": vqa.vqa_accuracy,
    "vqa_lenient": lambda prediction, answers: vqa.vqa_accuracy(prediction, answers, rule="lenient"),
    "accuracy": strings.accuracy,
    "exact_match": strings.exact_match,
    "f1": strings.f1,
    "anls": strings.anls,
}
ANSWER_METRICS = tuple(_PER_ANSWER)
_BLEU = [f"bleu_{n}" for n in range(1, captions.MAX_ORDER + 1)]
_JAVA = ("meteor", "spice")
CAPTION_METRICS = (*_BLEU, "rouge_l", "cider", *_JAVA)
LIKELIHOOD_METRICS = ("bits_per_byte",)
CONFIDENCE_METRICS = ("roc_auc",)
OPTION_METRICS = ("f1_a", "em_questions")  # of the options of MultiRC's questions, each answered by yes or no
WRITING_METRICS = (*writing.INTRA_DISTINCT, "words")  # of the text alone
NAMES = (*ANSWER_METRICS, *CAPTION_METRICS, *LIKELIHOOD_METRICS, *CONFIDENCE_METRICS, *OPTION_METRICS, *WRITING_METRICS)


def resolve(names: Sequence[str], known: Sequence[str] = NAMES) -> list[str]:
    """Expand "bleu" to its four orders and reject unknown names.

    Raises:
        ValueError: an unknown metric; the nearest known one is suggested.
    """
    resolved: list[str] = []
    for name in names:
        expanded = _BLEU if name == "bleu" else [name]
        for one in expanded:
            if one not in known:
                raise ValueError(f"unknown metric {one!r}; {suggest(one, ('bleu', *known), 'known metrics')}")
            if one not in resolved:
                resolved.append(one)
    return resolved


def check_available(names: Sequence[str]) -> None:
    """Raise ValueError now for a metric that could not be computed after a long run."""
    for name in names:
        if name in _JAVA:
            coco_java.require(name)


def compute(
    names: Sequence[str],
    predictions: Sequence[str],
    references: References,
    likelihoods: Sequence[float] | None = None,
    confidences: Sequence[float] | None = None,
    positive: Sequence[bool] | None = None,
    groups: Sequence[str] | None = None,
) -> list[MetricScore]:
    """Score predictions against their references under each metric.

    Args:
        names: metric names; "bleu" stands for bleu_1 to bleu_4.
        predictions: N raw strings.
        references: for each prediction its answers or captions, raw.
        likelihoods: for bits_per_byte, the log-probability (nats) of each first reference.
        confidences, positive: for roc_auc, how sure the model is of the positive class, and whether that is right.
        groups: for em_questions, the question that each item is an option of.

    Raises:
        ValueError: nothing to score, an item without references, an unknown metric, or METEOR/SPICE without Java.
    """
    names = resolve(names)
    if not predictions:
        raise ValueError("nothing to score: there are no predictions")
    for index, answers in enumerate(references):
        if not answers and set(names) - set(WRITING_METRICS):
            raise ValueError(f"item {index} (counting from 0) has no reference answers or captions")
    scores = {
        name: mean_score(name, _per_answer(name, predictions, references)) for name in names if name in _PER_ANSWER
    }
    if set(names) & set(LIKELIHOOD_METRICS):
        scores["bits_per_byte"] = _bits_per_byte(references, likelihoods)
    if set(names) & set(CONFIDENCE_METRICS):
        if confidences is None or positive is None:
            raise ValueError("metric 'roc_auc' needs confidences: use it in a task with method rank and two candidates")
        scores["roc_auc"] = roc_auc(confidences, positive)
    if "f1_a" in names:
        scores["f1_a"] = MetricScore("f1_a", options.f1_counts(predictions, references), _share)
    if "em_questions" in names:
        if groups is None:
            raise ValueError(
                "metric 'em_questions' needs the question of each option: use it in a task of format multirc"
            )
        right = _per_answer("accuracy", predictions, references)
        scores["em_questions"] = MetricScore("em_questions", options.whole_questions(right, groups), _share)
    for name in set(names) & set(writing.INTRA_DISTINCT):
        scores[name] = MetricScore(name, writing.intra_distinct(predictions, int(name[-1])), _share)
    if "words" in names:
        scores["words"] = mean_score("words", [len(text.split()) for text in predictions])
    wanted = [name for name in names if name in CAPTION_METRICS]
    if wanted:
        scores |= _caption_scores(wanted, predictions, references)
    return [scores[name] for name in names]


def _bits_per_byte(references: References, likelihoods: Sequence[float] | None) -> MetricScore:
    """Information of all texts over their UTF-8 bytes: it compares models with different tokenizers."""
    if likelihoods is None:
        raise ValueError(
            "metric 'bits_per_byte' needs the likelihood of texts: use it in a task with method likelihood"
        )
    bits = [-value / math.log(2) for value in likelihoods]
    sizes = [len(texts[0].encode()) for texts in references]
    return MetricScore("bits_per_byte", np.array([bits, sizes], dtype=np.float64).T, _mean)


def _per_answer(name: str, predictions: Sequence[str], references: References) -> list[float]:
    score = cache(_PER_ANSWER[name])  # few answers are said to many questions, and each is normalised at length
    return [score(prediction, tuple(answers)) for prediction, answers in zip(predictions, references, strict=True)]


def _caption_scores(names: Sequence[str], predictions: Sequence[str], references: References) -> dict[str, MetricScore]:
    scores: dict[str, MetricScore] = {}
    if "meteor" in names:
        counts = coco_java.meteor_counts(predictions, references)
        scores["meteor"] = MetricScore("meteor", counts, coco_java.meteor_from_counts)
    if "spice" in names:
        scores["spice"] = mean_score("spice", coco_java.spice_per_item(predictions, references))
    if set(names) <= set(_JAVA):
        return scores
    tokens = ptb.tokenize_all(predictions)
    ref_tokens = [ptb.tokenize_all(refs) for refs in references]
    if "cider" in names:
        scores["cider"] = mean_score("cider", captions.cider(tokens, ref_tokens).per_item)
    if "rouge_l" in names:
        scores["rouge_l"] = mean_score("rouge_l", captions.rouge_l(tokens, ref_tokens).per_item)
    orders = [name for name in names if name in _BLEU]
    if orders:
        matched = captions.bleu_counts(tokens, ref_tokens)
        statistics = np.concatenate(
            [matched.correct, matched.guess, matched.candidate[:, None], matched.reference[:, None]], axis=-1
        )
        scores |= {name: MetricScore(name, statistics, _bleu_of_order(int(name[-1]))) for name in orders}
    return scores


def _bleu_of_order(order: int) -> Callable[[np.ndarray], np.ndarray]:
    def combine(sums: np.ndarray) -> np.ndarray:
        scores = captions.bleu_from_counts(sums[..., :4], sums[..., 4:8], sums[..., 8], sums[..., 9])
        return scores[..., order - 1]

    return combine
