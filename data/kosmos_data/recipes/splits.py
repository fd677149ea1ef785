"""What the recipes share: splits that follow from content alone, and counts as documents pass by."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator

from ..document import Document


def held_out(content: str, every: int) -> bool:
    """True for one text in ``every``, by its sha256: never by its place, so that a new source moves no old one."""
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:4], "big") % every == 0


def counted(documents: Iterable[Document], counts: Counter[str] | dict[str, int], name: str) -> Iterator[Document]:
    """The same documents; ``counts[name]`` is how many have passed."""
    counts[name] = 0
    for document in documents:
        counts[name] += 1
        yield document
