"""Does a text share a run of words with an evaluation text? N-grams of words, for decontamination and its check.

Source: GPT-3 (Brown et al. 2020, appendix C) for runs of 13 words; an evaluation text of 8 to 12 words must occur
whole, and one below eight words says too little to be looked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

NGRAM: Final = 13
SHORTEST: Final = 8
LENGTHS: Final = (NGRAM, *range(SHORTEST, NGRAM))
"""Lengths of the runs of words that evaluation texts are known by."""

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words of a text, in lower case and without punctuation."""
    return _WORD.findall(text.lower())


def grams(words: Sequence[str], lengths: Iterable[int]) -> Iterator[int]:
    """Hashes of all runs of the given lengths; Python's hash, so they hold within this process only."""
    for length in lengths:
        for start in range(len(words) - length + 1):
            yield hash((length, *words[start : start + length]))


def text_grams(text: str) -> set[int]:
    """Hashes that an evaluation text is known by: its 13-grams, or the whole of it from eight words on, or none."""
    found = words(text)
    return set(grams(found, [min(len(found), NGRAM)])) if len(found) >= SHORTEST else set()
