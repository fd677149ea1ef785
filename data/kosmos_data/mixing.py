"""How much of which source: token shares that hold at any time, without a random number and without communication.

The tokens of a step are laid on a line, source after source, each with its share; row i of the step takes the i-th
stretch. So every step plans exactly its share of each source, whatever the number of lanes, as KOSMOS-1 composes its
batches (0.5 M tokens of text, 0.5 M of pairs, 0.2 M of interleaved documents, section 3.1). A lane makes of its plan
what its documents allow and carries the difference into its next rows (:mod:`kosmos_data.lane`). With each step the
line is turned on by the golden ratio, so that every lane reads from every source at the same pace.

Ranks take every n-th row and so equal parts of each source; a rank's n-th micro-batch is of the same kind as the
others', which keeps them in step where only some rows have images.

Differs from the KOSMOS-2 release, whose sampler draws a source per batch from an unseeded generator.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

_GOLDEN = 0.6180339887498949


def shares(weights: Sequence[float], temperature: float = 1.0) -> list[float]:
    """Token shares that sum to 1: weight^(1/temperature), normalised."""
    powers = [weight ** (1.0 / temperature) for weight in weights]
    return [power / sum(powers) for power in powers]


def quotas(row: int, rows_per_step: int, row_tokens: int, share: Sequence[float]) -> list[float]:
    """Tokens that the run's row number ``row`` should take of each source; they sum to ``row_tokens``."""
    step, place = divmod(row, rows_per_step)
    begin = (place + int(rows_per_step * (step * _GOLDEN % 1))) % rows_per_step
    edges = [0.0, *itertools.accumulate(part * rows_per_step for part in share)]
    edges[-1] = rows_per_step  # whatever rounding made of the sum
    return [
        row_tokens * max(0.0, min(stop, begin + 1) - max(start, begin)) for start, stop in itertools.pairwise(edges)
    ]
