"""MultiRC's metrics: each answer option of a question is judged yes or no (Khashabi and others 2018; SuperGLUE)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

POSITIVE = "yes"


def f1_counts(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """Twice the true positives, and all positives said or true, of each option, (N, 2): F1a is their ratio."""
    said = np.array([prediction.strip().lower() == POSITIVE for prediction in predictions])
    true = np.array([answers[0].strip().lower() == POSITIVE for answers in references])
    return np.stack([2.0 * (said & true), said.astype(float) + true], axis=-1)


def whole_questions(right: Sequence[float], questions: Sequence[str]) -> np.ndarray:
    """Whether all options of a question are judged right, and 1, at its first option; elsewhere 0 and 0, (N, 2)."""
    counts = np.zeros((len(right), 2))
    first: dict[str, int] = {}
    for place, (one, question) in enumerate(zip(right, questions, strict=True)):
        at = first.setdefault(question, place)
        counts[at] = [min(counts[at, 0], one) if at < place else one, 1.0]
    return counts
