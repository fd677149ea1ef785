"""Which document comes next: a pure function of (seed, source, lane, ordinal), so nothing but one number is ever saved.

A source is one endless sequence of its documents, shuffled anew each epoch; lane l of L takes every L-th of it, from
the l-th on. So each document is read exactly once per epoch whatever the number of lanes, and small corpora need no
special case. The shuffle is two-fold, for locality: shards are permuted, then documents within windows of shards.
The permutation of a window is a small Feistel network: no table, no random state, the same on every machine and
version of numpy.
"""

from __future__ import annotations

import hashlib
import itertools
from bisect import bisect_right
from functools import lru_cache

import numpy as np

SHARDS_PER_WINDOW = 64
_MASK = (1 << 64) - 1
_ROUNDS = 4


def mix(*values: int) -> int:
    """Hash integers to 64 bits (splitmix64's finaliser over a running sum)."""
    state = 0
    for value in values:
        state = (state + 0x9E3779B97F4A7C15 + value) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def name_key(name: str) -> int:
    """64 bits of a string, the same in every process (unlike ``hash``)."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def permute(index: int, size: int, key: int) -> int:
    """The image of ``index`` under a pseudo-random permutation of 0 … size − 1."""
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    keys = _round_keys(key)
    while True:  # cycle walking: the network permutes a power of four, at most four times too large
        left, right = index >> half, index & mask
        for round_key in keys:  # mix() by hand: this runs for every document
            hashed = ((right ^ round_key) * 0xBF58476D1CE4E5B9) & _MASK
            hashed = ((hashed ^ hashed >> 31) * 0x94D049BB133111EB) & _MASK
            left, right = right, left ^ (hashed >> 40 & mask)
        index = left << half | right
        if index < size:
            return index


@lru_cache(maxsize=64)
def _round_keys(key: int) -> tuple[int, ...]:
    return tuple(mix(key, turn) for turn in range(_ROUNDS))


class SourceOrder:
    """The order of one source's documents.

    Args:
        counts: documents per shard.
        seed: of the run.
        name: of the source; two sources with the same shards get different orders.
    """

    def __init__(self, counts: np.ndarray, seed: int, name: str) -> None:
        self.counts: list[int] = counts.tolist()
        self.starts = [0, *itertools.accumulate(self.counts)]
        self.total = self.starts[-1]
        self.key = mix(seed, name_key(name))
        self._remember()

    def __getitem__(self, ordinal: int) -> tuple[int, int]:
        """(epoch, index of the document) at place ``ordinal`` of the endless sequence."""
        epoch, place = divmod(ordinal, self.total)
        shards, ends = self._plan(epoch)
        first, size, key = self._window(epoch, bisect_right(ends, place) // SHARDS_PER_WINDOW)
        shuffled = first + permute(place - first, size, key)
        position = bisect_right(ends, shuffled)
        shard = shards[position]
        return epoch, self.starts[shard] + shuffled - (ends[position] - self.counts[shard])

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_plan", "_window")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._remember()

    def _remember(self) -> None:
        self._plan = lru_cache(maxsize=2)(self._make_plan)  # lanes may stand in two epochs at a time
        self._window = lru_cache(maxsize=64)(self._make_window)

    def _make_plan(self, epoch: int) -> tuple[list[int], list[int]]:
        """Shards in the order of ``epoch``, and the running total of documents at the end of each."""
        shards = sorted(range(len(self.counts)), key=lambda shard: mix(self.key, epoch, ~shard & _MASK))
        return shards, list(itertools.accumulate(self.counts[shard] for shard in shards))

    def _make_window(self, epoch: int, window: int) -> tuple[int, int, int]:
        """First place and number of the documents of a window of shards, and the key of their permutation."""
        ends = self._plan(epoch)[1]
        first = ends[window * SHARDS_PER_WINDOW - 1] if window else 0
        last = ends[min((window + 1) * SHARDS_PER_WINDOW, len(ends)) - 1]
        return first, last - first, mix(self.key, epoch, window)
