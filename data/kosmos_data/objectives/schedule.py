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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..document import Document
from ..example import Example
from . import Objective, from_settings

if TYPE_CHECKING:
    from kosmos.processing_kosmos import KosmosProcessor


@dataclass(frozen=True)
class Schedule:
    """An objective that depends on the step; called directly it is its first stage.

    Args:
        ends: the step at which each stage but the last ends.
        stages: one objective more than ``ends``.
    """

    ends: tuple[int, ...]
    stages: tuple[Objective, ...]

    def __call__(self, document: Document, seed: int) -> Example:
        return self.stages[0](document, seed)

    def at(self, step: int) -> Objective:
        """The objective of ``step``."""
        return self.stages[sum(step >= end for end in self.ends)]


def build(processor: KosmosProcessor, stages: Sequence[Mapping[str, Any]]) -> Schedule:
    """The schedule.

    Args:
        processor: tokenizer and image processor of the run.
        stages: objectives with their options; every one but the last has ``until``, the step at which it ends.

    Raises:
        ValueError: no stages, ``until`` missing, not rising or on the last stage, or a schedule inside.
    """
    if not stages:
        raise ValueError("schedule: stages is empty: name at least one objective")
    given = [stage.get("until") for stage in stages]
    ends = [end for end in given[:-1] if isinstance(end, int) and end > 0]
    if given[-1] is not None or len(ends) < len(stages) - 1:
        raise ValueError(f"schedule: every stage but the last needs 'until', a step above 0; got {given}")
    if sorted(set(ends)) != ends:
        raise ValueError(f"schedule: the steps of 'until' must rise, got {ends}")
    made = [
        from_settings({key: value for key, value in stage.items() if key != "until"}, processor) for stage in stages
    ]
    if any(isinstance(stage, Schedule) for stage in made):
        raise ValueError("schedule: a schedule cannot be a stage of another; list all stages in one")
    return Schedule(tuple(ends), tuple(made))
