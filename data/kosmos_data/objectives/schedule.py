"""Objectives one after the other, by step of the run: span corruption first, then PrefixLM, as Flan-T5 was made.

    objective:
      name: schedule
      stages:
        - {until: 90_000, name: span_corruption}
        - {name: prefix_lm}

Every row is of the stage of its step: documents that wait for their place when a stage ends are made again by the next
one. A document of which a part is in earlier rows then comes again from its beginning, so that one document a lane and
source may be read twice in part at each border.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..document import Document
from ..example import Example
from . import Objective, from_settings

if TYPE_CHECKING:
    from kosmos.processing_kosmos import KosmosProcessor


@dataclass
class Schedule(Objective):
    """Objectives one after the other.

    Attributes:
        stages: objectives with their options; every one but the last has ``until``, the step at which it ends.
    """

    stages: list[dict[str, Any]] = field(default_factory=list)

    def prepare(self, processor: KosmosProcessor) -> None:
        """Make the stages."""
        super().prepare(processor)
        if not self.stages:
            raise ValueError("schedule: stages is empty: name at least one objective")
        given = [stage.get("until") for stage in self.stages]
        self.ends = [end for end in given[:-1] if isinstance(end, int) and end > 0]
        if given[-1] is not None or len(self.ends) < len(self.stages) - 1:
            raise ValueError(f"schedule: every stage but the last needs 'until', a step above 0; got {given}")
        if sorted(set(self.ends)) != self.ends:
            raise ValueError(f"schedule: the steps of 'until' must rise, got {self.ends}")
        self.members = members(self.stages, "until", processor)
        if any(isinstance(stage, Schedule) for stage in self.members):
            raise ValueError("schedule: a schedule cannot be a stage of another; list all stages in one")

    def __call__(self, document: Document, seed: int, step: int = 0) -> Example:
        """Make the example of the step's stage."""
        return self.at(step)(document, seed, step)

    def at(self, step: int) -> Objective:
        """Return the stage of ``step``."""
        return self.members[sum(step >= end for end in self.ends)]


def members(parts: Sequence[Mapping[str, Any]], key: str, processor: KosmosProcessor) -> list[Objective]:
    """Make the objectives of a list; ``key`` is no option of theirs but says when or how often they come."""
    return [from_settings({name: part[name] for name in part if name != key}, processor) for part in parts]
