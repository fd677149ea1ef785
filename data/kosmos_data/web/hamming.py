"""Which of many 64-bit hashes lie near each other, without comparing all pairs.

Manku, Jain and Das Sarma 2007 ("Detecting near-duplicates for web crawling"): cut the 64 bits into d + 3 blocks. Two
hashes that differ in at most d bits agree in at least three blocks whole; so one sort per choice of three blocks brings
every such pair together, and only hashes that agree in about 64 · 3 ÷ (d + 3) bits are compared.
"""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np

_AGREE = 3  # blocks


def near_groups(hashes: np.ndarray, bits: int) -> np.ndarray:
    """Group numbers of hashes: two are in one group when a chain of steps of at most ``bits`` bits joins them.

    Args:
        hashes: (n,) uint64.
        bits: largest Hamming distance of a step; 0 groups equal hashes, at most 13.

    Returns:
        (n,) int64 group numbers, a function of the hashes alone and not of their order.
    """
    if not 0 <= bits <= 13:
        raise ValueError(f"{bits} bits of difference: choose 0 to 13 of the 64")
    unique, inverse = np.unique(np.asarray(hashes, dtype=np.uint64), return_inverse=True)
    if bits == 0 or len(unique) < 2:
        return inverse.astype(np.int64)
    first, second = near_pairs(unique, bits)
    return connected(len(unique), first, second)[inverse]


def near_pairs(unique: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Index pairs of different hashes at most ``bits`` apart; a pair may come more than once."""
    edges = np.linspace(0, 64, bits + _AGREE + 1).astype(int)
    blocks = [(1 << int(high)) - (1 << int(low)) for low, high in pairwise(edges)]
    firsts, seconds = [], []
    for chosen in combinations(blocks, _AGREE):
        masked = unique & np.uint64(sum(chosen))
        order = np.argsort(masked, kind="stable")
        masked = masked[order]
        for step in range(1, len(order)):  # neighbours at this distance in the sorted list that agree in the blocks
            left = np.flatnonzero(masked[step:] == masked[:-step])
            if not len(left):
                break
            a, b = order[left], order[left + step]
            close = hamming(unique[a], unique[b]) <= bits
            firsts.append(a[close])
            seconds.append(b[close])
    if not firsts:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    return np.concatenate(firsts), np.concatenate(seconds)


def hamming(a: np.ndarray, b: np.ndarray | np.uint64) -> np.ndarray:
    """Number of bits in which 64-bit hashes differ."""
    difference = np.ascontiguousarray(np.bitwise_xor(a, b))
    return np.unpackbits(difference.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1)


def connected(count: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Component numbers (count,) of a graph with edges first[i] – second[i]; numbered by their smallest member."""
    parent = np.arange(count, dtype=np.int64)
    while True:  # every node takes the smallest label among itself and its neighbours, then jumps to its label's label
        before = parent.copy()
        np.minimum.at(parent, first, parent[second])
        np.minimum.at(parent, second, parent[first])
        parent = parent[parent]
        if np.array_equal(before, parent):
            return parent
