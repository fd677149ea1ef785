"""``entities.json`` beside a corpus: the kinds of its entities and personas, their names or how many numbers there are.

::

    {"user": ["A3SGXH7AUHU8GW", …], "item": 5021}

A shard writer collects it, ``kosmos tokenizer`` gives it to the processor, whose rows a model's tables then have. It is
made of the training corpus: an id that comes in a test only is unknown there, as it should be.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from kosmos.atomic import write_atomically
from kosmos.read_json import parse_json, read_utf8

from .document import Document, Entity, Persona

FILE = "entities.json"
Kinds: TypeAlias = dict[str, "int | list[str]"]


class EntityNames:
    """Collects the ids of documents, in the order in which each came first."""

    def __init__(self) -> None:
        self.names: dict[str, dict[str, None]] = {}
        self.sizes: dict[str, int] = {}

    def add(self, document: Document) -> None:
        """Take in the entities of a document."""
        for segment in document.segments:
            ids = segment.pairs() if isinstance(segment, Persona) else ()
            for kind, identity in segment.ids.items() if isinstance(segment, Entity) else ids:
                if isinstance(identity, str):
                    self.names.setdefault(kind, {})[identity] = None
                else:
                    self.sizes[kind] = max(self.sizes.get(kind, 0), identity + 1)

    def kinds(self) -> Kinds:
        """What was found, as ``entities`` of a processor.

        Raises:
            ValueError: a kind has names in some documents and numbers in others.
        """
        if both := sorted(set(self.names) & set(self.sizes)):
            raise ValueError(f"the entities of the kind {both[0]!r} are names in some documents, numbers in others")
        named: Kinds = {kind: list(names) for kind, names in self.names.items()}
        return named | {kind: max(1, size) for kind, size in self.sizes.items()}

    def write(self, root: Path) -> None:
        """Write ``entities.json`` into a corpus that has entities."""
        if kinds := self.kinds():
            write_atomically(root / FILE, json.dumps(kinds, ensure_ascii=False))


def read_kinds(roots: Iterable[str | Path]) -> Kinds | None:
    """Join the kinds of several corpora; None: none of them has entities.

    Raises:
        ValueError: a file that is no such table, or a kind of names in one corpus and of numbers in another.
    """
    joined: Kinds = {}
    for root in roots:
        path = Path(root) / FILE
        if not path.is_file():
            continue
        for kind, ids in _read(path).items():
            old = joined.get(kind, type(ids)())
            if isinstance(old, list) != isinstance(ids, list):
                raise ValueError(f"{path}: the kind {kind!r} has names in one corpus and numbers in another")
            if isinstance(old, list) and isinstance(ids, list):
                joined[kind] = list(dict.fromkeys([*old, *ids]))
            else:
                joined[kind] = max(old, ids)  # type: ignore[type-var]
    return joined or None


def _read(path: Path) -> Kinds:
    try:
        found = parse_json(read_utf8(path))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    fits = isinstance(found, dict) and all(
        (isinstance(ids, int) and not isinstance(ids, bool) and ids > 0)
        or (isinstance(ids, list) and ids and all(isinstance(name, str) for name in ids))
        for ids in found.values()
    )
    if not fits:
        raise ValueError(f"{path}: each kind has a list of names or a number of ids")
    return found
