"""Spans of unlike lengths laid end to end into few rows, so that a text encoder reads little padding.

::

    padded     a a a a a a        laid   a a a a a a
               b b b · · ·               b b b c c ·     each token sees its own span only, positions begin anew
               c c · · · ·

One call reads all rows, as it would read the padded ones: under ZeRO-3 every rank must call the encoder equally often.
The fewer of a batch's spans are as long as the longest, the more is saved.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


def first_position(config: Any) -> int | None:
    """Return the position of a text's first token, for encoders that take positions and a mask of their own.

    RoBERTa keeps the positions up to its padding's id free. None: the encoder must be given padded spans.
    """
    if config.model_type in ("roberta", "xlm-roberta"):
        return config.pad_token_id + 1
    return 0 if config.model_type == "bert" else None


class SpanRows(NamedTuple):
    """Where the tokens of S spans lie in R rows of L places.

    Attributes:
        tokens: ids, positions in the own span and numbers of the spans, (3, R, L); the number of padding is -1.
        taken: places of the tokens behind each span's BOS in the rows laid end to end, in the order of the spans, (N,).
    """

    tokens: Tensor
    taken: Tensor

    def mask(self, dtype: torch.dtype) -> Tensor:
        """Return what is added to the scores, (R, 1, L, L): nothing within a span, else the lowest number."""
        spans_RL = self.tokens[2]
        apart = spans_RL[:, None, :, None] != spans_RL[:, None, None, :]
        return torch.zeros(apart.shape, dtype=dtype, device=apart.device).masked_fill(apart, torch.finfo(dtype).min)


def lay_in_rows(ids_SL: Tensor, mask_SL: Tensor) -> SpanRows | None:
    """Lay spans into rows as long as the longest; None if that makes no fewer rows, or padding is not on the right."""
    lengths_S = mask_SL.sum(1)
    prefixes_SL = torch.arange(mask_SL.shape[1], device=mask_SL.device) < lengths_S[:, None]
    if not torch.equal(mask_SL.bool(), prefixes_SL) or not lengths_S.all():
        return None
    longest = int(lengths_S.max())
    starts = _starts(lengths_S.tolist(), longest)
    rows = max(starts) // longest + 1
    if rows == len(ids_SL):
        return None
    ids_N = ids_SL[prefixes_SL]
    spans_N = torch.repeat_interleave(torch.arange(len(ids_SL)), lengths_S)
    positions_N = torch.arange(len(ids_N)) - (lengths_S.cumsum(0) - lengths_S)[spans_N]
    places_N = torch.tensor(starts)[spans_N] + positions_N
    tokens = torch.tensor([0, 0, -1])[:, None].repeat(1, rows * longest)
    tokens[:, places_N] = torch.stack([ids_N, positions_N, spans_N])
    return SpanRows(tokens.view(3, rows, longest), places_N[positions_N > 0])


def _starts(lengths: list[int], longest: int) -> list[int]:
    """Return where each span begins: a row takes the longest span left, and the shortest ones while they fit."""
    order = sorted(range(len(lengths)), key=lambda span: -lengths[span])
    starts, end = [0] * len(lengths), len(order)
    for row, span in enumerate(order):
        if row >= end:
            break
        starts[span] = row * longest
        place = lengths[span]
        while end - 1 > row and place + lengths[order[end - 1]] <= longest:
            end -= 1
            starts[order[end]] = row * longest + place
            place += lengths[order[end]]
    return starts
