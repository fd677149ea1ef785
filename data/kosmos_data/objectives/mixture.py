"""Several objectives by weight: each document gets one of them, drawn anew in every epoch.

objective:
  name: mixture
  parts:
    - {weight: 0.5, name: causal}
    - {weight: 0.5, name: span_corruption, density: 0.15}
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..document import Document
from ..example import Example
from . import Objective
from .schedule import Schedule, members

if TYPE_CHECKING:
    from kosmos.processing_kosmos import KosmosProcessor


@dataclass
class Mixture(Objective):
    """Several objectives by weight.

    Attributes:
        parts: objectives with their options, each with a ``weight`` (1 by default).
    """

    parts: list[dict[str, Any]] = field(default_factory=list)

    def prepare(self, processor: KosmosProcessor) -> None:
        """Make the parts."""
        super().prepare(processor)
        if not self.parts:
            raise ValueError("mixture: parts is empty: name at least one objective")
        weights = np.array([float(part.get("weight", 1.0)) for part in self.parts])
        if weights.min() < 0 or weights.sum() <= 0:
            raise ValueError(f"mixture: weights {weights.tolist()} must not be negative, nor all 0")
        self.members = members(self.parts, "weight", processor)
        if any(isinstance(member, Schedule) for member in self.members):
            raise ValueError("mixture: a schedule cannot be a part; make a schedule whose stages are mixtures")
        self.bounds = np.cumsum(weights / weights.sum())

    def __call__(self, document: Document, seed: int, step: int = 0) -> Example:
        """Draw the objective of this document."""
        draw = np.random.default_rng([seed, *b"mixture"]).random()
        chosen = min(int(np.searchsorted(self.bounds, draw, side="right")), len(self.members) - 1)
        return self.members[chosen](document, seed, step)
