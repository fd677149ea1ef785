"""Which answers of a dialogue say something of the persona: what the classifier of attention routing learns.

The paper of attention routing (Zheng et al. 2019, arXiv 1911.04700) labels dialogues by a script with rules that it
does not print. The rule here: an answer does if a word of it, of at least three letters and none of the commonest, is
one of the persona's words.
"""

from __future__ import annotations

import itertools
import re

from .document import Document, Persona, Segment, Text

_WORD = re.compile(r"[^\W\d_]{3,}")
_COMMON = frozenset(
    "about all also always and any are been but can did does don for from get got had has have her him his how its "  # noqa: SIM905
    "just know like lot lots love much never not now off one our out really she some that the their them then there "
    "they this too very was well were what when where which who why will with would you your".split()
)


def words(text: str) -> set[str]:
    """Return the words of a text that say something, in lower case."""
    return {word for found in _WORD.findall(text) if (word := found.lower()) not in _COMMON}


def about_persona(document: Document) -> list[int]:
    """Return for each segment 1 if it is of an answer that says something of the first persona, 0 if of another.

    -1 for what is no answer, and everywhere without a persona. Supervised texts one behind the other are one answer.
    """
    who = next((segment for segment in document.segments if isinstance(segment, Persona)), None)
    if who is None:
        return [-1] * len(document.segments)
    own = set().union(*(words(text) for _, text in who.pairs()))
    found: list[int] = []
    for is_answer, group in itertools.groupby(document.segments, _answers):
        texts = list(group)
        said = set().union(*(words(one.text) for one in texts if isinstance(one, Text)))
        found += [int(bool(own & said)) if is_answer else -1] * len(texts)
    return found


def _answers(segment: Segment) -> bool:
    return isinstance(segment, Text) and segment.supervised
