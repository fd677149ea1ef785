"""The first rows of the page of evidence in a README, between two marks; drawn, never typed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kosmos.atomic import write_atomically

from . import page as pages
from .page import Found

BEGIN, END = "<!-- first rows of the evidence -->\n", "<!-- end of the evidence -->"
COUNT = 5


def draw(readme: Path, page: Path) -> str:
    """Draw the rows anew into ``readme`` and return its text.

    Raises:
        FileNotFoundError: no README, or no trial beside the page.
        ValueError: a README without the two marks.
    """
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, behind = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{readme} has no place for the rows: write {BEGIN.strip()} and {END} on lines of their own")
    place = page.resolve().relative_to(readme.resolve().parent)
    text = before + begin + rows(pages.read(page), str(place)) + "\n" + end + behind
    write_atomically(readme, text)
    return text


def rows(found: Sequence[Found], page: str) -> str:
    """The table: each claim with its outcome and its first comparison; ``page``: path from the README."""
    lines = [[f"[{one['claim']}]({page}#{one['name']})", pages.outcome(one), _first(one)] for one in found[:COUNT]]
    return pages.table(["claim", "outcome", "the first of its comparisons"], lines)


def _first(found: Found) -> str:
    one = found["comparisons"][0]
    return f"{one['words']}: {pages.signed(one)}"
