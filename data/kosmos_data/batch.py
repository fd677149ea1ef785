"""Rows to tensors: what one optimiser step of one rank reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kosmos.choices import NAMES
from kosmos.modalities import MODALITIES, stack_inputs

from .example import Choices
from .packing import BLOCK, DOCUMENT, LABEL, POSITION, POSITION_IN_SPAN, SOURCE, TOKEN, Row


@dataclass(slots=True)
class StepBatch:
    """Everything that one rank needs for one optimiser step.

    Args:
        step: number of this batch in the run's data; skipped steps leave a gap.
        micro_batches: dictionaries of tensors, see :func:`collate`.
        state: the loader's state after this step, of this rank's lanes (:func:`kosmos_data.merge_states` joins ranks).
        stats: ``tokens`` (not padding), ``positions`` (with padding), ``supervised`` (tokens with loss; one rank may
            have none, that no rank has any is an error that only the trainer sees), ``images``, ``documents``,
            ``source_tokens`` and ``skipped`` by name, ``fallbacks`` (stretches too short for their objective), and
            ``order``, a hash of what was read: XOR over ranks, it is the same for any number of ranks and workers.
        rows: numbers of the rows in the order of the micro-batches.
        inputs: how many inputs of each modality each of these rows has.
    """

    step: int
    micro_batches: list[dict[str, Tensor]]
    state: dict[str, Any]
    stats: dict[str, Any]
    rows: list[int]
    inputs: list[dict[str, int]]


def collate(rows: Sequence[Row]) -> dict[str, Tensor]:
    """Stack rows into one micro-batch.

    Returns:
        ``input_ids``, ``shift_labels`` (−100 ignored), ``document_ids`` (−1 padding), ``position_ids``, ``source_ids``
        (−1 padding), all int64 (B, T); ``loss_weight`` float32 (B, T). Only where needed: ``block_ids``,
        ``position_in_span`` and ``persona_related`` int64 (B, T); the three tensors of ``kosmos.choices``; and, row by
        row, the inputs of each modality, which ``stack`` of ``kosmos.modalities`` makes:
        ``pixel_values`` uint8 (I, 3, S, S) …
    """

    def column(field: int) -> np.ndarray:
        return np.stack([row.fields[field] for row in rows])

    always = {
        "input_ids": TOKEN,
        "shift_labels": LABEL,
        "document_ids": DOCUMENT,
        "position_ids": POSITION,
        "source_ids": SOURCE,
    }
    batch = {name: torch.from_numpy(column(field)).long() for name, field in always.items()}
    batch["loss_weight"] = torch.from_numpy(np.stack([row.weight for row in rows]))
    block, position_in_span = column(BLOCK), column(POSITION_IN_SPAN)
    if (block >= 0).any():
        batch["block_ids"] = torch.from_numpy(block).long()
    if position_in_span.any():
        batch["position_in_span"] = torch.from_numpy(position_in_span).long()
    if any(row.related is not None for row in rows):
        nobody = np.full_like(block[0], -1)
        known = [nobody if row.related is None else row.related for row in rows]
        batch["persona_related"] = torch.from_numpy(np.stack(known)).long()
    width = batch["input_ids"].shape[1]
    if asked := [(number * width, row.choices) for number, row in enumerate(rows) if row.choices is not None]:
        found = Choices.joined(asked)
        columns = (found.tokens, found.questions, found.answers)
        batch |= {name: torch.from_numpy(column).long() for name, column in zip(NAMES, columns, strict=True)}
    return batch | stack_inputs(placed for row in rows for placed in row.placed)


def count_inputs(row: Row) -> dict[str, int]:
    """Count what a row holds of each modality."""
    return {name: sum(placed.modality == name for placed in row.placed) for name in MODALITIES}


def statistics(rows: Sequence[Row], source_names: Sequence[str]) -> dict[str, Any]:
    """Counts of one step, as in :class:`StepBatch`."""
    sources = np.stack([row.fields[SOURCE] for row in rows])
    counts = np.bincount(sources[sources >= 0], minlength=len(source_names))
    skipped: Counter[str] = Counter()
    order = 0
    for row in rows:
        skipped.update(row.skipped)
        order ^= row.order
    return {
        "tokens": int(counts.sum()),
        "positions": sources.size,
        "supervised": sum(int(np.count_nonzero(row.weight)) for row in rows),
        "images": sum(count_inputs(row)["image"] for row in rows),
        "documents": sum(row.documents for row in rows),
        "fallbacks": sum(row.fallbacks for row in rows),
        "source_tokens": dict(zip(source_names, counts.tolist(), strict=True)),
        "skipped": dict(skipped),
        "order": f"{order:016x}",
    }
