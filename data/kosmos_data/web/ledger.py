"""The ledger: what every filter dropped, with examples, so that a person can see whether a rule does what it says.

Records of WARC files, pages, images and paragraphs are counted, or the documents of another corpus. Of each kind, what
came in is what came out plus what was dropped, summed over the rules; :meth:`Ledger.check` says so if it is not. A
rule's examples are those with the smallest hash, hence a uniform sample that does not depend on order, tasks or
executor, and ledgers of parts merge into the ledger of the whole. KOSMOS-1 names its filters (section 3.1, appendix)
and gives no counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kosmos.atomic import write_atomically
from kosmos.read_json import parse_json

RECORDS: Final = "records"
PAGES: Final = "pages"
IMAGES: Final = "images"
PARAGRAPHS: Final = "paragraphs"
KINDS: Final = (RECORDS, PAGES, IMAGES, PARAGRAPHS)
"""What ``kosmos data web`` counts."""

DOCUMENTS: Final = "documents"
"""What ``kosmos data clean`` counts."""

WITH_PAGE: Final = "its page was dropped"
"""The rule under which the images and paragraphs of a dropped page are counted."""

STAGES: Final = (
    *("reading", "source", "captions", "extraction", "page", "paragraphs", "language", "text", "images", "held out"),
    *("duplicates", "selection"),
)
"""In the order in which a page or document passes through them."""

LEDGER_NAME: Final = "ledger.json"
_VERSION = 1

Example = dict[str, Any]


@dataclass
class Rule:
    """What one rule dropped.

    Args:
        count: how many.
        examples: (hash, example), smallest hash first.
    """

    count: int = 0
    examples: list[tuple[str, Example]] = field(default_factory=list)


class Ledger:
    """Counts and examples.

    Args:
        examples: kept per rule.
        kinds: what is counted.
    """

    def __init__(self, examples: int = 8, kinds: tuple[str, ...] = KINDS) -> None:
        self.examples = examples
        self.kinds = kinds
        self.entered: dict[str, int] = dict.fromkeys(kinds, 0)
        self.kept: dict[str, int] = dict.fromkeys(kinds, 0)
        self.rules: dict[tuple[str, str, str], Rule] = {}  # (kind, stage, reason)

    def enter(self, kind: str, count: int = 1) -> None:
        """Count things that come in."""
        self.entered[kind] += count

    def keep(self, kind: str, count: int = 1) -> None:
        """Count things that come out at the end."""
        self.kept[kind] += count

    def drop(self, kind: str, stage: str, reason: str, identity: str, example: Callable[[], Example]) -> None:
        """Count one thing that a rule dropped.

        Args:
            kind: one of :data:`KINDS`.
            stage: one of :data:`STAGES`.
            reason: the rule, in a few words.
            identity: names the thing wherever it is met, such as its URL; its hash decides whether it is an example.
            example: makes the example; called only when it is kept.
        """
        rule = self._rule(kind, stage, reason)
        rule.count += 1
        digest = hashlib.sha256(f"{reason}\n{identity}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
        if len(rule.examples) < self.examples or digest <= rule.examples[-1][0]:
            self._add_examples(rule, [(digest, example())])

    def drop_many(self, kind: str, stage: str, reason: str, count: int) -> None:
        """Count things dropped of which no example is kept."""
        if count:
            self._rule(kind, stage, reason).count += count

    def merge(self, other: Ledger) -> None:
        """Add the counts and examples of another part of the same corpus."""
        for kind in self.kinds:
            self.entered[kind] += other.entered[kind]
            self.kept[kind] += other.kept[kind]
        for name, theirs in other.rules.items():
            rule = self._rule(*name)
            rule.count += theirs.count
            self._add_examples(rule, theirs.examples)

    def dropped(self, kind: str) -> Iterator[tuple[str, str, Rule]]:
        """(stage, reason, rule) of one kind in the order of :data:`STAGES`, the most frequent of a stage first."""
        mine = [(stage, reason, rule) for (of, stage, reason), rule in self.rules.items() if of == kind]
        yield from sorted(mine, key=lambda row: (STAGES.index(row[0]), row[1] == WITH_PAGE, -row[2].count, row[1]))

    def count(self, kind: str, reason: str) -> int:
        """How many of a kind one rule dropped."""
        return sum(rule.count for of, _, name, rule in self._rows() if of == kind and name == reason)

    def check(self) -> None:
        """RuntimeError unless, for every kind, what came in is what came out plus what was dropped."""
        for kind in self.kinds:
            dropped = sum(rule.count for of, _, _, rule in self._rows() if of == kind)
            if self.entered[kind] != self.kept[kind] + dropped:
                raise RuntimeError(
                    f"the ledger does not add up: {self.entered[kind]} {kind} in, {self.kept[kind]} out, "
                    f"{dropped} dropped"
                )

    def to_json(self) -> str:
        """The ledger as JSON; the same counts and examples give the same text."""
        kinds = {}
        for kind in self.kinds:
            rows = [
                {"stage": stage, "reason": reason, "count": rule.count, "examples": [list(e) for e in rule.examples]}
                for stage, reason, rule in self.dropped(kind)
            ]
            kinds[kind] = {"in": self.entered[kind], "out": self.kept[kind], "dropped": rows}
        body = {"version": _VERSION, "examples_per_rule": self.examples, **kinds}
        return json.dumps(body, ensure_ascii=False, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Ledger:
        """Read what :meth:`to_json` wrote; ValueError if it is something else."""
        try:
            body = parse_json(text)
            if body["version"] != _VERSION:
                raise ValueError(f"version {body['version']}, this program reads version {_VERSION}")
            ledger = cls(body["examples_per_rule"], (DOCUMENTS,) if DOCUMENTS in body else KINDS)
            for kind in ledger.kinds:
                ledger.entered[kind], ledger.kept[kind] = body[kind]["in"], body[kind]["out"]
                for row in body[kind]["dropped"]:
                    examples = [(digest, example) for digest, example in row["examples"]]
                    ledger.rules[kind, row["stage"], row["reason"]] = Rule(row["count"], examples)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a ledger: {error}") from error
        return ledger

    def write(self, folder: str | Path) -> None:
        """Write ``ledger.json`` into ``folder``, whole or not at all."""
        write_atomically(Path(folder) / LEDGER_NAME, self.to_json())

    def _rule(self, kind: str, stage: str, reason: str) -> Rule:
        assert kind in self.kinds, kind
        assert stage in STAGES, stage
        return self.rules.setdefault((kind, stage, reason), Rule())

    def _add_examples(self, rule: Rule, examples: list[tuple[str, Example]]) -> None:
        both: dict[str, Example] = {}
        for digest, example in [*rule.examples, *examples]:
            # The same thing met twice (one address, two captures): the smaller in text, whichever came first.
            both[digest] = min(both.get(digest, example), example, key=lambda e: json.dumps(e, sort_keys=True))
        rule.examples = sorted(both.items(), key=lambda pair: pair[0])[: self.examples]

    def _rows(self) -> Iterator[tuple[str, str, str, Rule]]:
        return ((*name, rule) for name, rule in self.rules.items())


def read_ledger(folder: str | Path) -> Ledger:
    """The ledger of the corpus in ``folder``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is malformed.
    """
    path = Path(folder) / LEDGER_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such ledger; kosmos data web and clean write one beside their shards")
    try:
        return Ledger.from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
