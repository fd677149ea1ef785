"""The order is a permutation, a pure function, and dealt out without gap or overlap."""

from __future__ import annotations

import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kosmos_data.order import SHARDS_PER_WINDOW, SourceOrder, mix, permute

COUNTS = st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any).map(np.array)


@given(size=st.integers(1, 300), key=st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation(size: int, key: int) -> None:
    assert sorted(permute(index, size, key) for index in range(size)) == list(range(size))


@given(counts=COUNTS, seed=st.integers(0, 99), epoch=st.integers(0, 3))
def test_an_epoch_reads_each_document_once(counts: np.ndarray, seed: int, epoch: int) -> None:
    order, total = SourceOrder(counts, seed, "s"), int(counts.sum())
    read = [order[ordinal] for ordinal in range(epoch * total, (epoch + 1) * total)]
    assert {e for e, _ in read} == {epoch}
    assert sorted(index for _, index in read) == list(range(total))


@given(counts=COUNTS, lanes=st.integers(1, 40))
def test_lanes_share_the_sequence_without_gap_or_overlap(counts: np.ndarray, lanes: int) -> None:
    order, total = SourceOrder(counts, 0, "s"), int(counts.sum())
    rounds = -(-2 * total // lanes)
    by_lanes = {lane + lanes * k: order[lane + lanes * k] for lane in range(lanes) for k in range(rounds)}
    assert sorted(index for o, (_, index) in by_lanes.items() if o < total) == list(range(total))


def test_order_depends_on_seed_name_and_epoch_and_on_nothing_else() -> None:
    counts = np.array([50, 60, 70])
    order = SourceOrder(counts, 1, "a")
    first = [order[n] for n in range(180)]
    assert [pickle.loads(pickle.dumps(order))[n] for n in range(180)] == first
    shuffles = [
        [SourceOrder(counts, seed, name)[epoch * 180 + n][1] for n in range(180)]
        for seed, name, epoch in ((1, "a", 0), (2, "a", 0), (1, "b", 0), (1, "a", 1))
    ]
    assert all(shuffles[i] != shuffles[j] for i in range(4) for j in range(i))


def test_order_is_the_same_for_ever() -> None:
    """Golden values: a change here would silently change what a resumed run reads."""
    assert mix(1, 2, 3) == 7702586659592502839
    assert [permute(n, 10, 7) for n in range(10)] == [5, 4, 2, 8, 1, 7, 9, 6, 3, 0]
    assert [SourceOrder(np.array([4, 3]), 0, "s")[n] for n in range(9)] == [
        (0, 6),
        (0, 5),
        (0, 4),
        (0, 3),
        (0, 2),
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 3),
    ]


def test_the_shuffle_is_even() -> None:
    """Each document lands in each tenth of the epoch about equally often over many seeds."""
    counts = np.full(10, 20)
    places = np.zeros((200, 10))
    for seed in range(300):
        order = SourceOrder(counts, seed, "s")
        for ordinal in range(200):
            places[order[ordinal][1], ordinal // 20] += 1
    assert abs(places - 30).max() < 6 * np.sqrt(30)


def test_reading_stays_within_a_window_of_shards() -> None:
    counts = np.full(4 * SHARDS_PER_WINDOW, 5)
    order = SourceOrder(counts, 3, "s")
    window = SHARDS_PER_WINDOW * 5
    for start in range(0, 4 * window, window):
        shards = {order[ordinal][1] // 5 for ordinal in range(start, start + window)}
        assert len(shards) == SHARDS_PER_WINDOW
