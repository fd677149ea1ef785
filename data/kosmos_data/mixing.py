"""How much of which source: exact token shares without a random number.

Each next piece of a row comes from the source that is furthest behind its share, so used tokens never stray from the
weights by more than a piece or two per lane. KOSMOS-1 mixes by tokens as well (0.5 M text, 0.5 M pairs, 0.2 M
interleaved per batch, section 3.1).

Differs from the KOSMOS-2 release, whose sampler draws a source per batch from an unseeded generator.
"""

from __future__ import annotations

from collections.abc import Sequence

from .order import permute


def shares(weights: Sequence[float], temperature: float = 1.0) -> list[float]:
    """Token shares that sum to 1: weight^(1/temperature), normalised."""
    powers = [weight ** (1.0 / temperature) for weight in weights]
    return [power / sum(powers) for power in powers]


def by_need(share: Sequence[float], used: Sequence[float], coming: Sequence[float]) -> list[int]:
    """Source numbers, the one furthest behind its share first; ties go to the lower number.

    Args:
        share: from :func:`shares`.
        used: tokens that each source has given so far.
        coming: length of each source's next piece. Half of it counts as used: a source of long pieces then swings
            around its share instead of always being ahead of it.
    """
    total = sum(used)
    ahead = [had + piece / 2 - part * total for had, piece, part in zip(used, coming, share, strict=True)]
    return sorted(range(len(share)), key=lambda source: (ahead[source], source))


def head_start(lane: int, lanes: int, sources: int, row_tokens: int) -> list[float]:
    """Tokens by which each source of ``lane`` is treated as ahead at the start, within ± half a row.

    Without it all lanes would ask the same source first and stay in step, and early batches would be of one kind. For
    each source the numbers are spread evenly over the lanes, so over all lanes they sum to 0.
    """
    places = [permute(lane, lanes, source) for source in range(sources)]
    return [row_tokens * ((place + 0.5) / lanes - 0.5) for place in places]
