"""The end of a message about a mistyped word."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def suggest(word: str, known: Iterable[str], otherwise: str = "known") -> str:
    """Return the nearest word that is ``known`` as a question, or all of them behind ``otherwise``."""
    names = list(known)
    near = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"{otherwise}: {', '.join(names) or 'none'}"
