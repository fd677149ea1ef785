"""Token shares hold at any time, whatever the lengths, the lanes and the packing."""

from __future__ import annotations

import functools
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kosmos_data import DataConfig, Document, SourceConfig, Text
from kosmos_data.example import Example
from kosmos_data.lane import Lane
from kosmos_data.mixing import quotas, shares
from kosmos_data.order import SourceOrder

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


@given(weights=WEIGHTS, rows=st.integers(1, 70), tokens=st.integers(1, 4096), step=st.integers(0, 10**7))
def test_every_step_plans_exactly_its_shares(weights: list[float], rows: int, tokens: int, step: int) -> None:
    share = shares(weights)
    plans = [quotas(step * rows + row, rows, tokens, share) for row in range(rows)]
    assert all(sum(plan) == pytest.approx(tokens) and min(plan) >= 0 for plan in plans)
    for source, part in enumerate(share):
        assert sum(plan[source] for plan in plans) == pytest.approx(part * rows * tokens)


@pytest.mark.parametrize(("rows", "lanes"), [(1, 1), (4, 4), (16, 16), (4, 64), (24, 24), (64, 64)])
def test_every_lane_is_given_every_source_alike(rows: int, lanes: int) -> None:
    """Else a lane's part of a source would be read later than that of the others, and epochs would not be epochs."""
    share = shares([0.5, 0.5, 0.2])
    for lane in range(lanes):
        plans = [quotas(lane + turn * lanes, rows, 1, share) for turn in range(300)]
        for source, part in enumerate(share):
            assert sum(plan[source] for plan in plans) == pytest.approx(300 * part, abs=6)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_ranks_share_the_pictures_evenly(ranks: int) -> None:
    share = shares([0.5, 0.5, 0.2])
    for step, rank in itertools.product(range(20), range(ranks)):
        plans = [quotas(64 * step + row, 64, 1, share) for row in range(rank, 64, ranks)]
        for source, part in enumerate(share):
            assert sum(plan[source] for plan in plans) == pytest.approx(64 / ranks * part, abs=1)


@dataclass
class Lengths:
    """A source without words: documents that are lengths."""

    name: str
    draw: Callable[[random.Random], int]
    order: SourceOrder = field(init=False)

    def __post_init__(self) -> None:
        self.order = SourceOrder(np.array([100_000] * 10), 0, self.name)
        self.corpus = [Document("k", [Text("x")])] * 1_000_000

    def objective(self, document: Document, seed: int, step: int = 0) -> Example:
        return of_length(self.draw(random.Random(seed)))


@functools.cache
def of_length(length: int) -> Example:
    """Nothing but its length counts, so that all of one length are one example."""
    column = np.zeros(length, dtype=np.int32)
    cuts, ends = np.ones(length, dtype=bool), np.arange(length) % 20 == 19  # sentences of twenty tokens
    return Example(column, column, column, column, column, column, column, [], cuts, ends=ends)


def chosen_tokens(sources: Sequence[Any], weights: Sequence[float], **options: Any) -> Iterator[Counter[int]]:
    """Tokens by source of one step after the other, as lanes choose them; nothing is written into rows."""
    config = DataConfig(
        [SourceConfig(str(n), "", weight) for n, weight in enumerate(weights)],
        **{"row_tokens": 512, "rows_per_step": 16} | options,
    )
    lanes = [Lane(config, sources, number, bos=0, pad=1) for number in range(config.lane_count)]
    for step in itertools.count():
        used: Counter[int] = Counter()
        for row in range(step * config.rows_per_step, (step + 1) * config.rows_per_step):
            for piece in lanes[row % config.lane_count]._choose_pieces(row):
                used[piece.source] += piece.length
        yield used


def exponential(mean: int) -> Callable[[random.Random], int]:
    return lambda rng: 2 + int(rng.expovariate(1 / mean))


def uniform(low: int, high: int) -> Callable[[random.Random], int]:
    return lambda rng: rng.randint(low, high)


LONG_TEXT = [exponential(600), uniform(14, 24), uniform(60, 400)]
LONG_PAGES = [exponential(700), uniform(20, 40), exponential(900)]
SHORT = [uniform(10, 60), uniform(70, 80), uniform(5, 200)]
UP_TO_A_ROW = [uniform(2, 512), uniform(60, 120), uniform(2, 512)]


@pytest.mark.parametrize(
    ("kinds", "packing", "bound"),
    [
        (LONG_TEXT, "best_fit", 1e-3),
        (LONG_TEXT, "cut", 1e-3),
        (LONG_TEXT, "sentences", 1e-3),
        (LONG_PAGES, "best_fit", 1e-3),
        (LONG_PAGES, "cut", 1e-3),
        (LONG_PAGES, "sentences", 1e-3),
        (SHORT, "best_fit", 1e-3),
        (SHORT, "cut", 1e-3),
        (SHORT, "sentences", 1e-3),
        (UP_TO_A_ROW, "cut", 1e-3),
        (UP_TO_A_ROW, "sentences", 1e-3),
        # Nothing may be cut, and no document is short: what is owed stays at a good part of a row in each lane.
        (UP_TO_A_ROW, "best_fit", 2e-3),
    ],
)
def test_shares_are_exact_in_any_million_tokens(kinds: list[Callable], packing: str, bound: float) -> None:
    """From the first million on, 16 lanes of rows of 512, KOSMOS-1's weights."""
    sources = [Lengths(str(n), draw) for n, draw in enumerate(kinds)]
    weights = [0.5, 0.5, 0.2]
    history: list[Counter[int]] = [Counter()]
    for used in itertools.islice(chosen_tokens(sources, weights, packing=packing), 165):
        history.append(history[-1] + used)
    first = 0
    for last, total in enumerate(history):
        while total.total() - history[first].total() >= 1_000_000:
            window = total - history[first]
            for source, part in enumerate(shares(weights)):
                assert abs(window[source] / window.total() - part) < bound, f"steps {first} to {last}"
            first += 1
    assert first > 30


@settings(max_examples=10)
@given(
    weights=st.lists(st.floats(0.1, 1), min_size=2, max_size=4),
    longest=st.lists(st.integers(4, 300), min_size=4, max_size=4),
    rows=st.sampled_from([1, 4, 6]),
    lanes=st.sampled_from([None, 2, 12]),
    packing=st.sampled_from(["best_fit", "cut", "sentences"]),
)
@example([0.125, 1.0, 1.0], [4, 55, 33, 4], 1, None, "sentences")  # only the first fits into the gaps that others leave
def test_no_lane_strays_by_more_than_about_a_row(
    weights: list[float], longest: list[int], rows: int, lanes: int | None, packing: str
) -> None:
    sources = [Lengths(str(n), uniform(2, longest[n])) for n in range(len(weights))]
    lanes = lanes if lanes is None or rows % lanes == 0 or lanes % rows == 0 else None
    config = {"row_tokens": 96, "rows_per_step": rows, "lanes": lanes, "packing": packing}
    used: Counter[int] = Counter()
    for step in itertools.islice(chosen_tokens(sources, weights, **config), 400 // rows):
        used += step
        for source, part in enumerate(shares(weights)):
            assert abs(used[source] - part * used.total()) <= 2 * 96 * (lanes or rows)
