"""Which key a query sees: one rule for every objective, and the masks that are made of it.

A query sees a key when both belong to the same document, and the key is not later or both lie in the same bidirectional
block. :func:`sees` is that rule; the dense mask, the runs of a CPU and flex_attention's mask all come from it.
Blockwise causal attention (xPos paper, section 3.3) for inputs beyond the training length is a mask as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache

from .configuration_kosmos import KosmosTextConfig
from .rows import document_borders, visible

TILE = 128  # queries and keys of a block of flex_attention's mask


@dataclass(frozen=True)
class Run:
    """``length`` consecutive tokens of one document, or of padding; ``mask`` only where it has bidirectional blocks."""

    length: int
    padding: bool
    mask: Tensor | None


def sees(documents_BT: Tensor, blocks_BT: Tensor | None, window: int | None = None) -> Callable[..., Tensor]:
    """Return the rule as flex_attention's mask function (row, head, query, key): True where the query sees the key.

    Two documents, the first with a bidirectional block of three tokens (-1: in no block), and padding::

        documents   0 0 0 0 0 1 1 -1 -1      a row is a query, a column a key: █ same document and same block,
        blocks     -1 0 0 0 -1 -1 -1 -1 -1     ▒ same document and not later, · hidden

            ▒ · · · · · · · ·
            ▒ █ █ █ · · · · ·
            ▒ █ █ █ · · · · ·
            ▒ █ █ █ · · · · ·
            ▒ ▒ ▒ ▒ ▒ · · · ·
            · · · · · ▒ · · ·
            · · · · · ▒ ▒ · ·
            · · · · · · · ▒ ·
            · · · · · · · ▒ ▒

    Padding is a document like another, so that no row of the mask is empty; nobody reads what it attends to, and runs
    leave it out. A ``window`` hides keys so many tokens back or more, outside of a block. The dense mask, the runs of a
    CPU, the flex mask and the drawings of ``kosmos data inspect`` are all made of this.
    """

    def rule(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = key <= query
        if window is not None:
            seen = seen & (query - key < window)
        if blocks_BT is not None:
            block = blocks_BT[row, query]
            seen = seen | ((block == blocks_BT[row, key]) & (block >= 0))
        return seen & (documents_BT[row, query] == documents_BT[row, key])

    return rule


def document_mask(document_ids_BT: Tensor, block_ids_BT: Tensor | None, window: int | None = None) -> Tensor:
    """Return the rule as a dense boolean mask (B, T, T)."""
    rows, length = document_ids_BT.shape
    row, place = (torch.arange(size, device=document_ids_BT.device) for size in (rows, length))
    rule = sees(document_ids_BT, block_ids_BT, window)
    return rule(row[:, None, None], row[:1], place[None, :, None], place[None, None, :])


def document_runs(document_ids_BT: Tensor, block_ids_BT: Tensor | None, window: int | None = None) -> list[Run]:
    """Cut the rows, laid end to end, at document borders.

    Raises:
        ValueError: a document comes in two pieces of one row.
    """
    starts = document_borders(document_ids_BT)
    owners = document_ids_BT.flatten()[starts[:-1]].tolist()
    borders = starts.tolist()
    blocks_1N = None if block_ids_BT is None else block_ids_BT.reshape(1, -1)
    runs = []
    for start, stop, owner in zip(borders, borders[1:], owners, strict=False):
        mask, own_1L = None, None if blocks_1N is None else blocks_1N[:, start:stop]
        two_way = own_1L is not None and bool((own_1L >= 0).any())
        slides = window is not None and stop - start > window
        if owner >= 0 and (two_way or slides):
            one_document_1L = torch.zeros_like(document_ids_BT.reshape(1, -1)[:, start:stop])
            mask = document_mask(one_document_1L, own_1L, window)[0]
        runs.append(Run(stop - start, owner < 0, mask))
    return runs


def flex_mask(document_ids_BT: Tensor, block_ids_BT: Tensor | None, window: int | None = None) -> Any:
    """Return the rule as flex_attention's block-sparse mask, built once a batch, without waiting for the device.

    Each document and each block must be one stretch, so that a token sees an interval of keys.
    """
    return interval_mask(*visible(document_ids_BT, block_ids_BT, window))


def interval_mask(first_BT: Tensor, last_BT: Tensor) -> Any:
    """Return flex_attention's block-sparse mask where each query sees the keys from ``first`` to ``last``.

    A tile of the mask is empty, or full, by the bounds of its edges: ``create_block_mask`` would call the rule on every
    pair, ten times as long for the host. The kernel compares keys with two numbers a query, and loads nothing by key.
    """
    from torch.nn.attention.flex_attention import BlockMask

    length = first_BT.shape[1]
    pad = -length % TILE
    first_BNQ = F.pad(first_BT, (0, pad), value=length + pad).unflatten(1, (-1, TILE))
    last_BNQ = F.pad(last_BT, (0, pad), value=-1).unflatten(1, (-1, TILE))
    begin = torch.arange(0, length, TILE, device=first_BT.device)
    end = begin + TILE - 1
    touched = ((first_BNQ[..., None] <= end) & (last_BNQ[..., None] >= begin)).any(2)
    full = (first_BNQ.amax(-1)[..., None] <= begin) & (last_BNQ.amin(-1)[..., None] >= end)

    def rule(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (first_BT[row, query] <= key) & (key <= last_BT[row, query])

    partial, whole = _listed(touched & ~full), _listed(full)
    return BlockMask.from_kv_blocks(*partial, *whole, BLOCK_SIZE=TILE, mask_mod=rule, seq_lengths=(length, length))


def _listed(tiles_BQK: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many tiles each row of tiles has and which, those first, (B, 1, Q) and (B, 1, Q, K) int32."""
    order = tiles_BQK.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return tiles_BQK.sum(-1, dtype=torch.int32)[:, None], order.int()[:, None]


def blockwise_causal(
    config: KosmosTextConfig,
    hidden_BTD: Tensor,
    attention_mask: Tensor | None,
    past_key_values: Cache | None,
    training: bool,
) -> Callable[..., Tensor] | None:
    """Return the mask function of blockwise causal attention where the input is longer than the training length.

    Blocks are counted in real tokens: padding before or between them would otherwise move the borders of a row by what
    its batch happens to hold.
    """
    length = config.blockwise_causal_length
    if length is None or training:
        return None
    total = hidden_BTD.shape[1] + (past_key_values.get_seq_length() if past_key_values is not None else 0)
    if total <= length:
        return None
    half = length // 2
    if attention_mask is not None and attention_mask.ndim == 2:
        block_BP = (attention_mask.long().cumsum(1) - 1).clamp(min=0) // half

        def near_by_tokens(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return block_BP[row, query] - block_BP[row, key] <= 1

        return near_by_tokens

    def near(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return query // half - key // half <= 1

    return near
