"""What a forward pass asks of its ids before it can go on, answered on the CPU before the batch goes to a GPU.

Where placeholders stand, which outputs have a label, whether an id is in the vocabulary: asked of a tensor on a GPU,
each question makes the training thread wait until the GPU has done all that was queued, and then the GPU waits for the
thread. A loader has the ids in memory anyway. ``KosmosModel.describe_rows`` answers them there, and
``forward(layout=…)`` takes the answers; without them it asks the tensors, which costs nothing on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

Move = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Packing:
    """How documents lie in the rows (B, T) of a batch.

    Attributes:
        borders: (N + 1,) int32, where each document, or stretch of padding, begins in the rows laid end to end, and
            where the last one ends.
        alone: each row is one document from its first token on, with nothing but padding behind it.
        connected: each bidirectional block is one stretch.
    """

    borders: Tensor
    alone: bool
    connected: bool


@dataclass(frozen=True)
class RowLayout:
    """The answers for one batch; that its ids, positions and labels are in range is known as well.

    Attributes:
        places: modality → flat indices of its placeholders in the rows laid end to end, in order.
        supervised: (N,) flat indices of the outputs that have a label; None: no labels were given.
        indices: modality → further arguments of its ``read``.
        packing: how documents lie; None: rows are not described by documents.
    """

    places: dict[str, Tensor] = field(default_factory=dict)
    supervised: Tensor | None = None
    indices: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    packing: Packing | None = None

    def map(self, move: Move) -> RowLayout:
        """Return the same with ``move`` done to every tensor: to pinned memory, to a device."""
        packing = self.packing and replace(self.packing, borders=move(self.packing.borders))
        return RowLayout(
            places={name: move(places) for name, places in self.places.items()},
            supervised=None if self.supervised is None else move(self.supervised),
            indices={name: {key: move(one) for key, one in found.items()} for name, found in self.indices.items()},
            packing=packing,
        )


def find_packing(document_ids_BT: Tensor, block_ids_BT: Tensor | None) -> Packing:
    """Find how documents lie in rows; on a GPU this waits for it.

    Raises:
        ValueError: a document comes in two pieces of one row.
    """
    borders = document_borders(document_ids_BT)
    owners = document_ids_BT.flatten()[borders[:-1]]
    first = borders[:-1] % document_ids_BT.shape[1] == 0
    alone = bool((owners[first] >= 0).all() and (owners[~first] < 0).all())
    whole = block_ids_BT is None or _connected(block_ids_BT, document_ids_BT)
    return Packing(borders.int(), alone, whole)


def document_borders(document_ids_BT: Tensor) -> Tensor:
    """Return where documents and stretches of padding begin in the rows laid end to end, and the end, (N + 1,).

    Raises:
        ValueError: a document comes in two pieces of one row.
    """
    rows, length = document_ids_BT.shape
    starts = changes(document_ids_BT).flatten().nonzero().squeeze(1)
    owners = document_ids_BT.flatten()[starts]
    real = owners >= 0
    keys = torch.stack([starts[real] // length, owners[real]], dim=1)
    found, counts = keys.unique(dim=0, return_counts=True)
    if len(found) < len(keys):
        row, owner = found[counts > 1][0].tolist()
        raise ValueError(
            f"document_ids: document {owner} of row {row} is in several pieces; documents must be contiguous"
        )
    return torch.cat([starts, starts.new_tensor([rows * length])])


def changes(ids_BT: Tensor) -> Tensor:
    """Return True where a row begins, or a token has another id than the one before it."""
    change = torch.ones_like(ids_BT, dtype=torch.bool)
    change[:, 1:] = ids_BT[:, 1:] != ids_BT[:, :-1]
    return change


def _connected(block_ids_BT: Tensor, document_ids_BT: Tensor) -> bool:
    """Whether each block is one stretch of one document."""
    begins = (changes(block_ids_BT) | changes(document_ids_BT)) & (block_ids_BT >= 0)
    row, place = begins.nonzero().unbind(1)
    keys = torch.stack([row, document_ids_BT[row, place], block_ids_BT[row, place]], dim=1)
    return len(keys.unique(dim=0)) == len(keys)


def visible(document_ids_BT: Tensor, block_ids_BT: Tensor | None, window: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the first and the last key that each token sees, (B, T) int32 each; no host waits for it.

    The rule of attention.py, where each document and each block is one stretch: what a token sees is an interval then.
    A block is seen whole, also beyond the window.
    """
    place_BT = torch.arange(document_ids_BT.shape[1], device=document_ids_BT.device).expand_as(document_ids_BT)
    document_begins = changes(document_ids_BT)
    first = (place_BT * document_begins).cummax(1).values
    if window is not None:
        first = torch.maximum(first, place_BT - (window - 1))
    last = place_BT
    if block_ids_BT is not None:
        begins, inside = changes(block_ids_BT) | document_begins, block_ids_BT >= 0
        block_first = (place_BT * begins).cummax(1).values
        ends = torch.ones_like(begins)
        ends[:, :-1] = begins[:, 1:]
        far = torch.where(ends, place_BT, place_BT.shape[1])
        block_last = far.flip(1).cummin(1).values.flip(1)
        first = torch.where(inside, torch.minimum(first, block_first), first)
        last = torch.where(inside, block_last, place_BT)
    return first.int(), last.int()
