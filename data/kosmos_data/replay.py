"""``kosmos data order`` and ``replay``: what was read in which step, as a hash to compare and as text to look at.

Both make the batches with the loader itself, for any number of ranks, in one process.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kosmos.modalities import MODALITIES, input_names
from kosmos.read_json import parse_json

from .batch import StepBatch
from .config import DataConfig
from .loader import build_loader, merge_states

Row = dict[str, np.ndarray]


def global_batches(
    config: DataConfig, processor: Any, ranks: int, state: dict[str, Any] | None = None
) -> Iterator[tuple[list[Row], list[StepBatch]]]:
    """Endless (rows in the order of their numbers, batch of every rank), with all ranks in this process."""
    config = replace(config, rows_per_micro_batch=1)  # does not matter for the order, and fits any number of ranks
    loaders = [build_loader(config, processor, rank, ranks, state) for rank in range(ranks)]
    try:
        while True:
            batches = [next(loader) for loader in loaders]
            numbered = {
                number: row for batch in batches for number, row in zip(batch.rows, rows_of(batch), strict=True)
            }
            yield [numbered[number] for number in sorted(numbered)], batches
    finally:
        for loader in loaders:
            loader.close()


def rows_of(batch: StepBatch) -> list[Row]:
    """Take a step's micro-batches apart again: arrays of each row, with its own inputs of each modality."""
    rows: list[Row] = []
    for micro in batch.micro_batches:
        first = dict.fromkeys(MODALITIES, 0)
        for index in range(len(micro["input_ids"])):
            row = {name: tensor[index].numpy() for name, tensor in micro.items() if name not in input_names()}
            for modality, count in batch.inputs[len(rows)].items():
                mine = slice(first[modality], first[modality] + count)
                given = MODALITIES[modality].given(micro) if count else {}
                row |= {name: tensor[mine].numpy() for name, tensor in given.items()}
                first[modality] += count
            rows.append(row)
    return rows


def digest(rows: list[Row]) -> str:
    """sha256 over everything that the model is given of a global batch (tokens, labels, image bytes), row by row."""
    total = hashlib.sha256()
    for row in rows:
        for name in sorted(row):
            total.update(name.encode() + np.ascontiguousarray(row[name]).tobytes())
    return total.hexdigest()


def order(
    config: DataConfig, processor: Any, ranks: int, start: int, steps: int, state_file: Path | None = None
) -> Iterator[tuple[int, str]]:
    """(step, sha256 of its global batch) for ``steps`` steps from ``start`` on.

    Args:
        config: the loader's settings.
        processor: tokenizer and image processor.
        ranks: how many ranks to imitate.
        start: first step; steps before it that the state does not cover are made and thrown away.
        steps: how many steps.
        state_file: the loader's state is read from it if it exists, and written to it at the end.

    Raises:
        ValueError: the saved state is none, or already behind ``start``; no step or rank is asked for.
    """
    for name, value, least in (("ranks", ranks, 1), ("start", start, 0), ("steps", steps, 1)):
        _check_least(name, value, least)
    state = _read_state(state_file, start)
    for rows, batches in global_batches(config, processor, ranks, state):
        step = batches[0].step
        if step >= start:
            yield step, digest(rows)
        if step >= start + steps - 1:
            if state_file is not None:
                state_file.write_text(json.dumps(merge_states([batch.state for batch in batches])))
            return


def replay(
    config: DataConfig, processor: Any, step: int, state_file: Path | None = None
) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """(row number, [(source, text) of each document]) for the rows of ``step``.

    Args:
        config: the loader's settings.
        processor: tokenizer and image processor.
        step: which step; all steps between the state and it are made again.
        state_file: a saved loader state at or before ``step``; None: from the beginning.

    Raises:
        ValueError: the state is already behind ``step``, or the step is one of ``skip_steps``.
    """
    _check_least("step", step, 0)
    if step in config.skip_steps:
        raise ValueError(f"step {step} is in data.skip_steps: it was left out")
    state = _read_state(state_file, step)
    for rows, batches in global_batches(config, processor, ranks=1, state=state):
        if batches[0].step == step:
            names = [source.name for source in config.sources]
            for number, row in zip(batches[0].rows, rows, strict=True):
                yield number, documents_of(row, processor, names)
            return


def documents_of(row: Row, processor: Any, names: list[str]) -> list[tuple[str, str]]:
    """(source, text) of each document of a row; a picture is ``<image></image>``."""
    slot = processor.image_slot_id
    documents = row["document_ids"]
    found = []
    for document in np.unique(documents[documents >= 0]):
        here = documents == document
        kept = [token for token in row["input_ids"][here].tolist() if token != slot]
        found.append((names[int(row["source_ids"][here][0])], processor.tokenizer.decode(kept)))
    return found


def _check_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} {value} must be at least {least}")


def _read_state(path: Path | None, start: int) -> dict[str, Any] | None:
    if path is None or not path.exists():
        return None
    try:
        state = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(state, dict) or not isinstance(state.get("step"), int):
        raise ValueError(f"{path} is no state of a loader: it names no step")
    if state["step"] > start:
        raise ValueError(f"{path} stands at step {state['step']}, after step {start}")
    return state
