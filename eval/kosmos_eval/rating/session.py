"""One person's way through the items: which comes when, which text stands where, what was judged."""

from __future__ import annotations

import threading
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from ..items import stable_hash
from . import judgements
from .judgements import Judgement
from .texts import Pair, Pairs


class Session:
    """One rater before the pairs of two systems.

    Order and sides are drawn for each rater, so that neither a liking of the left nor the tiredness of the end falls on
    the same items for all. Items whose texts are the same are ties that nobody is asked about.

    Args:
        pairs: what is judged.
        rater: who judges.
        ratings: the file, which is made with the first judgement; what it holds of this rater is not asked again.
        seed: of order and sides.
        question: what the page asks.

    Raises:
        ValueError: the rater has no name; the file holds ratings of other inputs, or is none.
    """

    def __init__(self, pairs: Pairs, rater: str, ratings: Path, seed: int, question: str) -> None:
        if not rater:
            raise ValueError("the rater's name is empty; give one: --rater NAME")
        self.inputs, self.names = pairs.inputs, [system.name for system in pairs.systems]
        self.rater, self.ratings, self.seed, self.question = rater, ratings, seed, question
        self._lock = threading.Lock()
        held = judgements.read(ratings) if ratings.exists() else []
        if held:
            judgements.check_inputs(str(ratings), held[0].inputs, self.inputs)
        self._made = {item: one for (who, item), one in judgements.latest(held).items() if who == rater}
        self.same = [pair for pair in pairs.pairs if pair.is_same]
        shown = [pair for pair in pairs.pairs if not pair.is_same]
        self.pairs = sorted(shown, key=lambda pair: stable_hash("order", seed, rater, pair.key))

    def add_ties(self) -> None:
        """Write down a tie for each item whose texts are the same."""
        for pair in self.same:
            if pair.key not in self._made:
                self._add(pair, "tie", same=True)

    def sides(self, pair: Pair) -> tuple[int, int]:
        """Which of the two systems stands on the left, and which on the right: 0 the first, 1 the second."""
        left = stable_hash("side", self.seed, self.rater, pair.key) & 1
        return left, 1 - left

    def judge(self, place: int, judgement: str) -> None:
        """Write down what was judged of the item at ``place``, whatever was judged of it before.

        Raises:
            ValueError: no such judgement.
            OSError: it cannot be written; then it counts as not judged.
        """
        if judgement not in judgements.CHOICES:
            raise ValueError(f"judgement {judgement!r} is none of {', '.join(judgements.CHOICES)}")
        with self._lock:
            self._add(self.pairs[place], judgement)

    def _add(self, pair: Pair, judgement: str, same: bool = False) -> None:
        left, right = (self.names[side] for side in self.sides(pair))
        winner = {"left": left, "right": right}.get(judgement)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        one = Judgement(pair.key, self.rater, judgement, left, right, winner, now, self.seed, self.question,
                        self.inputs, same)  # fmt: skip
        judgements.append(self.ratings, one)
        self._made[pair.key] = one

    def judged(self, place: int) -> str | None:
        """What was judged of the item at ``place``, as it stands now: with another seed the sides may be others."""
        pair = self.pairs[place]
        made = self._made.get(pair.key)
        if made is None:
            return None
        if made.winner is None:
            return made.judgement
        return "left" if self.names[self.sides(pair)[0]] == made.winner else "right"

    def after(self, place: int = -1) -> int | None:
        """The next item behind ``place``, or else before it, that was not judged; None: all are."""
        places = [*range(place + 1, len(self.pairs)), *range(place + 1)]
        return next((one for one in places if self.pairs[one].key not in self._made), None)

    def counts(self) -> Counter[str]:
        """How many items of the page were judged how."""
        return Counter(self._made[pair.key].judgement for pair in self.pairs if pair.key in self._made)

    def skipped(self) -> int | None:
        """The first item that was skipped."""
        return next((place for place in range(len(self.pairs)) if self.judged(place) == "skip"), None)
