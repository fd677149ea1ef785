"""Token shares are exact, whatever the lengths."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kosmos_data.mixing import by_need, head_start, shares

WEIGHTS = st.lists(st.floats(0.05, 10), min_size=1, max_size=5)


@given(WEIGHTS, st.floats(0.2, 5))
def test_shares_sum_to_one_and_keep_the_order(weights: list[float], temperature: float) -> None:
    share = shares(weights, temperature)
    assert sum(share) == pytest.approx(1)
    assert sorted(range(len(share)), key=lambda n: (weights[n], n)) == sorted(
        range(len(share)), key=lambda n: (share[n], weights[n], n)
    )


def test_temperature_flattens() -> None:
    assert shares([4, 1], 1.0) == pytest.approx([0.8, 0.2])
    assert shares([4, 1], 2.0) == pytest.approx([2 / 3, 1 / 3])


@given(weights=WEIGHTS, longest=st.integers(1, 400), seed=st.integers(0, 9))
def test_no_source_strays_by_more_than_a_few_pieces(weights: list[float], longest: int, seed: int) -> None:
    rng, share, used = random.Random(seed), shares(weights), [0.0] * len(weights)
    for _ in range(600):
        coming = [float(rng.randint(1, longest)) for _ in weights]
        source = by_need(share, used, coming)[0]
        used[source] += coming[source]
        off = [abs(had - part * sum(used)) for had, part in zip(used, share, strict=True)]
        assert max(off) <= longest * len(weights)


def test_sources_of_long_and_short_pieces_come_out_even() -> None:
    """Averaged over time neither is ahead: half of the coming piece counts as used."""
    used, ahead = [0.0, 0.0], 0.0
    for _ in range(4000):
        source = by_need([0.5, 0.5], used, [500.0, 10.0])[0]
        used[source] += (500, 10)[source]
        ahead += used[0] - used[1]
    assert abs(ahead / 4000) < 60


@pytest.mark.parametrize("lanes", [1, 2, 16, 24])
def test_head_starts_cancel_over_the_lanes(lanes: int) -> None:
    starts = [head_start(lane, lanes, 3, 512) for lane in range(lanes)]
    for source in range(3):
        assert sum(start[source] for start in starts) == pytest.approx(0)
    assert all(abs(value) <= 256 for start in starts for value in start)
