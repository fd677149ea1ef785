"""The bootstrap: coverage against the closed form, clusters, pairing."""

from __future__ import annotations

import numpy as np
import pytest

from kosmos_eval import statistics
from kosmos_eval.metrics import compute, mean_score


def test_interval_of_a_proportion_matches_the_normal_approximation() -> None:
    values = np.r_[np.ones(300), np.zeros(100)]
    low, high = statistics.interval(mean_score("accuracy", values))
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert (low, high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.006)


def test_interval_is_deterministic_and_moves_with_the_seed() -> None:
    score = mean_score("accuracy", np.arange(50) % 3 == 0)
    assert statistics.interval(score) == statistics.interval(score)
    assert statistics.interval(score) != statistics.interval(score, seed=1)


def test_copies_within_an_image_add_no_information() -> None:
    """Ten copies of each item: the clustered interval stays as wide as that of the single items."""
    values = np.random.default_rng(0).random(200)
    single = statistics.interval(mean_score("f1", values))
    copied = mean_score("f1", np.repeat(values, 10))
    assert statistics.interval(copied, clusters=list(np.repeat(np.arange(200), 10))) == pytest.approx(single)
    low, high = statistics.interval(copied)
    assert high - low < 0.5 * (single[1] - single[0])


def test_corpus_bleu_is_resampled_from_counts() -> None:
    (score,) = compute(["bleu_1"], ["a cat", "a dog on a mat", "red"], [["a cat"], ["the dog"], ["blue"]])
    low, high = statistics.interval(score)
    assert low <= score.value <= high
    assert score.value == pytest.approx((2 + 1 + 0) / 8, abs=1e-6)


def test_pairing_finds_a_small_constant_difference() -> None:
    noise = np.random.default_rng(0).random(300)
    result = statistics.compare(mean_score("f1", noise), mean_score("f1", noise + 0.01))
    assert (result.low, result.high) == pytest.approx((0.01, 0.01))
    assert result.p_value < 0.01
    same = statistics.compare(mean_score("f1", noise), mean_score("f1", noise))
    assert same.difference == 0
    assert same.p_value == 1.0


def test_pairing_rejects_different_items() -> None:
    with pytest.raises(ValueError, match="same items"):
        statistics.compare(mean_score("f1", [1.0]), mean_score("f1", [1.0, 0.0]))
