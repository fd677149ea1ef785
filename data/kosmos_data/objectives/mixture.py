"""Several objectives by weight: each document gets one of them, drawn anew in every epoch.

objective:
  name: mixture
  parts:
    - {weight: 0.5, name: causal}
    - {weight: 0.5, name: span_corruption, density: 0.15}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..document import Document
from ..example import Example
from . import Objective, from_settings
from .schedule import Schedule

if TYPE_CHECKING:
    from kosmos.processing_kosmos import KosmosProcessor


def build(processor: KosmosProcessor, parts: Sequence[Mapping[str, Any]]) -> Objective:
    """The mixture.

    Args:
        processor: tokenizer and image processor of the run.
        parts: objectives with their options, each with a ``weight`` (1 by default).

    Raises:
        ValueError: no parts, a weight below 0, all weights 0, or a schedule inside.
    """
    if not parts:
        raise ValueError("mixture: parts is empty: name at least one objective")
    weights = np.array([float(part.get("weight", 1.0)) for part in parts])
    if weights.min() < 0 or weights.sum() <= 0:
        raise ValueError(f"mixture: weights {weights.tolist()} must not be negative, nor all 0")
    members = [
        from_settings({key: value for key, value in part.items() if key != "weight"}, processor) for part in parts
    ]
    if any(isinstance(member, Schedule) for member in members):
        raise ValueError("mixture: a schedule cannot be a part; make a schedule whose stages are mixtures")
    bounds = np.cumsum(weights / weights.sum())

    def mixture(document: Document, seed: int) -> Example:
        draw = np.random.default_rng([seed, *b"mixture"]).random()
        chosen = min(int(np.searchsorted(bounds, draw, side="right")), len(members) - 1)
        return members[chosen](document, seed)

    return mixture
