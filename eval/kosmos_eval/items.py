"""What a task evaluates: one item after the other, and the hashes by which items and files are known."""

from __future__ import annotations

import hashlib
import re
import string
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path


@dataclass(frozen=True)
class Item:
    """One thing to be answered.

    Attributes:
        id: unique within the split; part of every hash that draws something for this item.
        fields: what the prompt template names, for example ``question``.
        images: files, in the order of the template's marks ``<image>``, ``<audio>`` and ``<video>``.
        answers: reference answers or captions.
        group: question type, for scores by type; empty: none.
        candidates: answers to rank, where the item has its own.
        wordings: a description of each of these, for ``decoding.described``.
        candidate_images: images to rank (Raven's matrices), one for each candidate.
        demonstrations: solved examples of its own, in prompt order (demonstrations.method ``own``).
        source: the text that it is a part of; empty: none.
    """

    id: str
    fields: dict[str, str] = field(default_factory=dict)
    images: tuple[Path, ...] = ()
    answers: tuple[str, ...] = ()
    group: str = ""
    candidates: tuple[str, ...] = ()
    wordings: tuple[str, ...] = ()
    candidate_images: tuple[Path, ...] = ()
    demonstrations: tuple[Item, ...] = ()
    source: str = ""

    @cached_property
    def cluster(self) -> str:
        """What the bootstrap draws as a whole: the item's images, or the text that it is of, or itself."""
        return "|".join(str(path) for path in self.images) or self.source or self.id


@lru_cache(maxsize=1 << 16)
def content_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def stable_hash(*parts: object) -> int:
    """A 64-bit number that depends on ``parts`` only: not on the process, the batch or the rank."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big")


def check_fields(pattern: str) -> None:
    """Refuse braces that hold more than a field's name and a short width: ``{x.__class__}``, ``{x:>999999999}``.

    Raises:
        ValueError: names them.
    """
    for _, name, form, _ in string.Formatter().parse(pattern):
        if name is not None and set(name) & set(".[]"):
            raise ValueError(f"{{{name[:60]}}} is no field's name")
        if form and ("{" in form or re.search(r"[1-9]\d\d", form)):
            raise ValueError(f"{{{name}:{form[:60]}}} asks for more than 99 characters")
