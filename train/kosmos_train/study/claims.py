"""The registry of claims: what a paper says, and how it is tried here; one YAML each in ``train/configs/evidence/``.

A claim is tried by a table of cells: each ``arm`` (a way of doing it, the control among them) at each ``point`` (a
length, a learning rate, a number of shots) with each seed. Arms and points change two things alike: the run that is
trained, and how the finished run is read. Cells whose run is the same share it, whatever claim they belong to. A claim
holds where every comparison's whole 95 % interval lies on the side that it expects.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kosmos import settings
from kosmos.suggest import suggest

from ..config import TrainConfig
from ..named_configs import FOLDER, find_config


@dataclass
class Change:
    """What an arm or a point changes."""

    train: dict[str, Any] = field(default_factory=dict)
    """Settings of the run, merged into the base's: ``{optim: {lr: 0.01}}``."""
    objective: dict[str, Any] = field(default_factory=dict)
    """Objective of the base's first source instead of its own."""
    read: dict[str, Any] = field(default_factory=dict)
    """Settings of the measurement, merged into the claim's ``read``."""
    tokenizer: dict[str, Any] = field(default_factory=dict)
    """Settings of the processor of these runs, merged into those of the claim's ``tokenizer``."""
    what: str = ""
    """A line for the page."""


@dataclass
class Comparison:
    """A sum of cells, and which side of a number it is expected on."""

    terms: dict[str, float] = field(default_factory=dict)
    """``arm`` or ``arm @ point`` → weight: ``{"xpos @ 512": 1, "rope @ 512": -1}`` is a difference."""
    expect: Literal["above", "below"] = "below"
    """Where the whole interval must lie."""
    than: float = 0.0
    """Of which number."""


@dataclass
class Claim:
    """One claim of a paper, and how it is tried."""

    claim: str = ""
    """The claim, one sentence."""
    row: int = 99
    """Its place on the page."""
    paper: str = ""
    """Paper and section."""
    says: str = ""
    """What the paper says, with its figures where it has some."""
    control: str = ""
    """What would show the same if the claim were empty."""
    figure: str = ""
    """What a number of the table is, with its unit."""
    limits: str = ""
    """What the trial does not show."""
    measure: Literal["windows", "task", "study"] = "windows"
    """How a finished run is read: loss on held-out windows of text, a task of ``kosmos eval``, or as a study does."""
    base: str = ""
    """YAML of the run, or of the study, in the folder of configs."""
    train: dict[str, Any] = field(default_factory=dict)
    """Changes to the base that all arms share."""
    checkpoint: str | None = None
    """A finished model that all arms read, instead of runs of their own; ``{seed}`` in it is one of ``seeds``."""
    needs: str = ""
    """The command that makes ``checkpoint``, or the model that the runs begin with."""
    recipe: str | None = None
    """Recipe of the corpus, made where the base's sources lie if they are missing."""
    corpus: str = ""
    """Folder that the recipe fills."""
    tokenizer: str | None = None
    """YAML of the processor, made where the base expects it if it is missing."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Each cell is tried with each: weights, dropout and data order of a run, demonstrations of a task."""
    read: dict[str, Any] = field(default_factory=dict)
    """Settings of the measurement, see :mod:`.measures`."""
    arms: dict[str, Change] = field(default_factory=dict)
    """Ways that are compared; of a study those that the page shows, all where there is none."""
    points: dict[str, Change] = field(default_factory=dict)
    """Places at which they are; none: one place."""
    axis: str = ""
    """What the points are; with numbers for points a curve is drawn."""
    logarithmic: bool = False
    """Draw that axis by powers of ten."""
    comparisons: dict[str, Comparison] = field(default_factory=dict)
    """What is expected, each in words."""
    name: str = ""
    """File name without ``.yaml``; filled in by :func:`load`."""

    def check(self) -> None:
        """Refuse what cannot be tried.

        Raises:
            ValueError: nothing is compared, a term that names no cell, or a claim without its words.
        """
        for key in ("claim", "paper", "says", "control", "figure", "base" if self.checkpoint is None else "needs"):
            if not getattr(self, key):
                raise ValueError(f"claim {self.name}: {key} is empty; it goes onto the page")
        if not self.comparisons or not (self.seeds or self.measure == "study"):
            raise ValueError(f"claim {self.name}: comparisons and seeds must not be empty")
        if self.measure != "study":
            self.check_terms(self.cells())

    def check_terms(self, cells: Iterable[tuple[str, str]]) -> None:
        """Refuse a comparison of what is not among ``cells``.

        Raises:
            ValueError: naming the term, and the nearest cell.
        """
        known = {cell_name(arm, point) for arm, point in cells}
        for words, comparison in self.comparisons.items():
            for term in comparison.terms:
                if term not in known:
                    raise ValueError(f"claim {self.name}: {words!r} names {term!r}; {suggest(term, known, 'cells')}")

    def checkpoint_of(self, seed: int) -> str:
        """The finished model that is read with a seed."""
        assert self.checkpoint is not None, "only asked where the claim has one"
        return self.checkpoint.replace("{seed}", str(seed))

    def cells(self) -> Iterator[tuple[str, str]]:
        """Each arm at each point; the point is empty where there are none."""
        for arm in self.arms:
            for point in self.points or [""]:
                yield arm, point

    def changes(self, arm: str, point: str) -> list[Change]:
        """What a cell changes, in the order in which it does."""
        return [self.arms[arm], *([self.points[point]] if point else [])]

    def reading(self, arm: str, point: str) -> dict[str, Any]:
        """How a cell's run is read."""
        found = self.read
        for change in self.changes(arm, point):
            found = merged(found, change.read)
        return found

    def processors(self) -> dict[str, dict[str, Any]]:
        """The processors of all runs, and what arm and point change in the claim's ``tokenizer`` for each.

        Raises:
            ValueError: two cells want one folder with other settings.
        """
        found: dict[str, dict[str, Any]] = {}
        for arm, point in self.cells():
            folder, changed = self.run_of(arm, point, self.seeds[0]).processor, dict[str, Any]()
            for change in self.changes(arm, point):
                changed |= change.tokenizer
            if folder and found.setdefault(folder, changed) != changed:
                raise ValueError(
                    f"claim {self.name}: {folder} is to be made with {found[folder]} and with {changed}; give "
                    f"{cell_name(arm, point)} another train.processor"
                )
        return found

    def run_of(self, arm: str, point: str, seed: int) -> TrainConfig:
        """The run of a cell, by its base and the changes.

        Raises:
            ValueError: settings that do not exist or cannot work.
        """
        values = merged(settings.read_yaml(find_config(self.base)), self.train)
        for change in self.changes(arm, point):
            values = merged(values, change.train)
            if change.objective:
                values["data"]["sources"][0] = values["data"]["sources"][0] | {"objective": change.objective}
        values = merged(values, {"seed": seed, "data": {"seed": seed}})
        values = merged(values, {"checkpoint": {"every": values["steps"], "keep": 1}})
        config = settings.from_dict(TrainConfig, values, f"claim {self.name}, {cell_name(arm, point)}: ")
        config.check()
        return config


def cell_name(arm: str, point: str) -> str:
    """What comparisons call a cell."""
    return f"{arm} @ {point}" if point else arm


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return ``values`` with ``changes``, mapping by mapping; neither is changed."""
    found = copy.deepcopy(values)
    for key, value in changes.items():
        inner = found.get(key)
        found[key] = (
            merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else copy.deepcopy(value)
        )
    return found


def known() -> dict[str, Path]:
    """Paths of the claims that come with the package, by name."""
    return {path.stem: path for path in sorted((FOLDER / "evidence" / "claims").glob("*.yaml"))}


def load(name: str | Path, overrides: Sequence[str] = ()) -> Claim:
    """The claim called ``name``, or the one in a YAML.

    Raises:
        ValueError: no such claim, or a key that does not exist, with a suggestion; what :meth:`Claim.check` refuses.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        claims = known()
        if str(name) not in claims:
            raise ValueError(f"unknown claim {str(name)!r}; {suggest(str(name), claims, 'known claims')}")
        path = claims[str(name)]
    claim = settings.load(Claim, path, overrides)
    claim = dataclasses.replace(claim, name=claim.name or path.stem)
    claim.check()
    return claim


def every() -> list[Claim]:
    """All claims that come with the package, in the order of the page."""
    return sorted((load(name) for name in known()), key=lambda claim: (claim.row, claim.name))


def key_of(value: Any) -> str:
    """A short name for settings: equal settings have equal ones."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
