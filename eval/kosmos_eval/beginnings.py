"""Texts that a model goes on with: beginnings of real ones, whose real continuation is known, and a person's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from kosmos.read_json import read_utf8

from .formats import read_json_lines
from .items import Item


def cut(items: Iterable[Item], words: int, rest: int) -> list[Item]:
    """Cut the lines of each item's text in two: field ``beginning``, and the answer, how it really goes on.

    An answer ends at a newline, so a line is an item of its own, ``ID:NUMBER``; the bootstrap draws whole texts. A line
    that has nothing behind its beginning is none.

    Args:
        items: whose first answer is a text.
        words: of a beginning.
        rest: words of the continuation at most.
    """
    return [part for item in items for part in _lines(item, words, rest)]


def _lines(item: Item, words: int, rest: int) -> Iterator[Item]:
    for number, line in enumerate(item.answers[0].splitlines(), start=1):
        split = line.split()
        if len(split) > words:
            beginning, following = " ".join(split[:words]), " ".join(split[words : words + rest])
            fields = item.fields | {"beginning": beginning}
            yield replace(item, id=f"{item.id}:{number}", fields=fields, answers=(following,), source=item.id)


def read(path: Path) -> list[Item]:
    """A person's own beginnings: of a ``.txt`` file each line, else JSON lines with ``prompt``.

    A line of JSON may have an ``id`` and the real ``continuation``; without one nothing can be compared with it.

    Raises:
        FileNotFoundError, ValueError: no such file; a line without a prompt.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix.lower() == ".txt":
        lines = enumerate(read_utf8(path).split("\n"), start=1)
        return [Item(str(number), {"beginning": line.strip()}) for number, line in lines if line.strip()]
    return [_own(entry, f"{path}:{number}", number) for number, entry in read_json_lines(path)]


def _own(entry: dict, where: str, number: int) -> Item:
    prompt, following = entry.get("prompt"), entry.get("continuation")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f'{where}: no "prompt", the text that a model goes on with')
    if not isinstance(following, str | None):
        raise ValueError(f'{where}: "continuation" is {following!r}, not text')
    answers = (following.strip(),) if following and following.strip() else ()
    return Item(str(entry.get("id", number)), {"beginning": prompt.rstrip()}, answers=answers)
