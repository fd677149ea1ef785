"""Constrained decoding: only given token sequences can be written (KOSMOS-1's constrained ImageNet, section 4.7)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class Trie:
    """The allowed answers as a tree of token ids.

    Args:
        sequences: token ids of each allowed answer.
        end: the token that closes an answer.
    """

    def __init__(self, sequences: Iterable[Sequence[int]], end: int) -> None:
        self._end = end
        self._next: dict[tuple[int, ...], set[int]] = {}
        for sequence in sequences:
            path = (*sequence, end)
            for length in range(len(path)):
                self._next.setdefault(tuple(path[:length]), set()).add(path[length])
        if not self._next:
            raise ValueError("constrained decoding needs candidates: set decoding.candidates")

    def allowed(self, written: Sequence[int]) -> list[int]:
        """Tokens that may follow; after a finished answer only its end again."""
        return sorted(self._next.get(tuple(written), {self._end}))
