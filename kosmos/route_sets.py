"""Which keys a query of a routed layer sees of persona, context and what is written (routing.py), as intervals of keys.

::

    ids      <s> <entity_slot> <entity_slot> Question: where? Answer: in   Rome        query "Rome":  persona  1 … 2
    keys      0        1             2           3       4      5      6     7                        context  3 … 4
    written   ·        ·             ·           ·       ·      x      x     x                        written  5 … 7
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from .masks import Run
from .rows import changes, document_borders


@dataclass
class HeldRoutes:
    """What a cache keeps of each row, (B,) each: places are those of its keys, -1 where there is none.

    Attributes:
        document: where the document begins.
        first, last: of the persona.
        begin: where the context begins.
        run: where the run of written tokens begins that the next token goes on with.
        votes, count: sum of what the classifier said of the context, and of how many tokens.
        run_votes, run_count: the same at the beginning of that run.
    """

    document: Tensor
    first: Tensor
    last: Tensor
    begin: Tensor
    run: Tensor
    votes: Tensor
    count: Tensor
    run_votes: Tensor
    run_count: Tensor

    def select(self, rows: Tensor) -> HeldRoutes:
        """Return what belongs to these rows, repeated or left out as the index says."""
        return HeldRoutes(*(getattr(self, field.name)[rows] for field in fields(self)))

    @classmethod
    def nothing(cls, rows: int, device: torch.device) -> HeldRoutes:
        """Return what is kept before the first token."""
        none = torch.full((rows,), -1, device=device)
        zero = torch.zeros(rows, dtype=torch.float64, device=device)
        return cls(none, none, none, none, none, zero, zero, zero, zero)


class Marks(NamedTuple):
    """What is known of every token, (B, T) each; places are those of keys, -1 where there is none.

    Attributes:
        real: no padding.
        target: places of the persona.
        writing: outputs that are written; on padding as the token before.
        document, begin, run: where document, context and run begin that the token belongs to.
        first, last: of the persona up to here, perhaps of an earlier document.
    """

    real: Tensor
    target: Tensor
    writing: Tensor
    document: Tensor
    begin: Tensor
    run: Tensor
    first: Tensor
    last: Tensor


class KeySet(NamedTuple):
    """One set of keys of every query as an interval; an empty one is the query itself, and ``there`` is False."""

    first_BT: Tensor
    last_BT: Tensor
    there_BT: Tensor


def find_marks(persona_BT: Tensor, writing_BT: Tensor, documents_BT: Tensor, held: HeldRoutes, seen: int) -> Marks:
    """Find persona, context and runs of every token.

    Everything is a running maximum over places, so that nothing waits for the device.

    Args:
        persona_BT: placeholders of entities or spans.
        writing_BT: outputs that are written.
        documents_BT: -1 on padding.
        held: of the tokens before.
        seen: how many keys there are before these tokens.
    """
    place_BT = (torch.arange(documents_BT.shape[1], device=documents_BT.device) + seen).expand_as(documents_BT)
    real_BT = documents_BT >= 0
    begins_BT = real_BT & changes(documents_BT) if not seen else torch.zeros_like(real_BT)
    document_BT = _latest(begins_BT, place_BT, held.document)
    none_B = torch.full_like(held.last, -1)
    # the persona: a stretch of placeholders that begins its document, behind its <s>
    start_BT = persona_BT & (begins_BT | ~_before(persona_BT, none_B >= 0))
    early_BT = place_BT - document_BT <= 1
    goes_on_BT = (place_BT == seen) & (held.last[:, None] == seen - 1) & (seen > 0)
    # of each placeholder the beginning of its stretch, and in the last bit whether that is the persona's
    begun_BT = _latest(start_BT, 2 * place_BT + (early_BT | goes_on_BT), none_B)
    target_BT = persona_BT & real_BT & (begun_BT % 2 == 1)
    begin_BT = torch.maximum(_latest(begins_BT, place_BT, held.begin), _latest(target_BT, place_BT + 1, held.begin))
    # padding between a prompt and what goes on with it does not end a run
    index_BT = _latest(real_BT, place_BT - seen, none_B)
    filled_BT = torch.where(index_BT >= 0, writing_BT.gather(1, index_BT.clamp(min=0)), held.run[:, None] >= 0)
    run_begins_BT = real_BT & writing_BT & (begins_BT | ~_before(filled_BT, held.run >= 0))
    return Marks(
        real=real_BT,
        target=target_BT,
        writing=filled_BT,
        document=document_BT,
        begin=begin_BT,
        run=_latest(run_begins_BT, place_BT, held.run),
        first=_latest(target_BT & start_BT & early_BT, place_BT, held.first),
        last=_latest(target_BT, place_BT, held.last),
    )


def find_sets(marks: Marks, seen: int) -> list[KeySet]:
    """Find which keys each query sees of persona, context and what is written; what writes nothing sees two of them."""
    place_BT = (torch.arange(marks.real.shape[1], device=marks.real.device) + seen).expand_as(marks.begin)
    writes_BT = marks.writing & marks.real
    until_BT = torch.where(writes_BT, marks.run - 1, place_BT)
    found = (
        (marks.first, marks.last, marks.real & (marks.last >= marks.document.clamp(min=0))),
        (marks.begin, until_BT, marks.real & (marks.begin <= until_BT)),
        (torch.maximum(marks.run, marks.begin), place_BT, writes_BT & (marks.begin <= place_BT)),
    )
    return [
        KeySet(torch.where(there, first, place_BT), torch.where(there, last, place_BT), there)
        for first, last, there in found
    ]


def _latest(there_BT: Tensor, value_BT: Tensor, earlier_B: Tensor) -> Tensor:
    """The value of the last place up to each at which ``there`` is True, ``earlier_B`` before; values grow."""
    none_BT = earlier_B[:, None].expand_as(value_BT)
    return torch.where(there_BT, value_BT, none_BT).cummax(1).values


def _before(flags_BT: Tensor, first_B: Tensor) -> Tensor:
    """The flag of the token before each, that of the first from outside."""
    return torch.cat([first_B[:, None], flags_BT[:, :-1]], dim=1)


def key_runs(one: KeySet, documents_BT: Tensor) -> list[Run]:
    """Return documents of the rows laid end to end, each with the mask of a set."""
    length, owner_N = documents_BT.shape[1], documents_BT.flatten()
    first_N, last_N = one.first_BT.flatten(), one.last_BT.flatten()
    runs = []
    for start, stop in itertools.pairwise(document_borders(documents_BT).tolist()):
        if int(owner_N[start]) < 0:
            runs.append(Run(stop - start, True, None))
            continue
        key_L = torch.arange(start, stop) % length
        mask_LL = (first_N[start:stop, None] <= key_L) & (key_L <= last_N[start:stop, None])
        runs.append(Run(stop - start, False, mask_LL))
    return runs


def dense_mask(one: KeySet, seen: int, attention_mask: Tensor | None) -> Tensor:
    """Return a set as a boolean mask (B, 1, T, P + T); padding is seen by itself only."""
    key_K = torch.arange(seen + one.first_BT.shape[1], device=one.first_BT.device)
    mask_BTK = (one.first_BT[..., None] <= key_K) & (key_K <= one.last_BT[..., None])
    if attention_mask is not None:
        mask_BTK = mask_BTK & ((attention_mask != 0)[:, None] | (key_K == key_K[seen:, None]))
    return mask_BTK[:, None]
