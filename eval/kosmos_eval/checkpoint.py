"""Evaluate a checkpoint folder on several tasks and write ``results.json``: what ``kosmos eval CHECKPOINT`` calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from kosmos.loading import find_checkpoint, load

from . import results, tasks
from .evaluate import evaluate
from .results import Row
from .store import Rank


def evaluate_checkpoint(
    checkpoint: str | Path,
    names: Sequence[str | Path],
    data: str | Path,
    *,
    overrides: Sequence[str] = (),
    device: str | None = None,
    name: str | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> list[Row]:
    """Evaluate a checkpoint on tasks; writes ``results.json`` and ``samples/`` and prints one table.

    Under torchrun the items are shared among the ranks; rank 0 writes and returns the rows.

    Args:
        checkpoint: a checkpoint folder or a run directory.
        names: task names or YAML paths.
        data: folder that the tasks' paths are relative to.
        overrides: ``key=value`` for every task's YAML.
        device: where the model runs; default a GPU (of this rank) if there is one.
        name: the model's name in the rows; default the folder's.
        out: default ``CHECKPOINT/eval``.
        **options: of :func:`kosmos_eval.evaluate.evaluate`.
    """
    chosen = [tasks.load(task, overrides) for task in names]
    folder = find_checkpoint(checkpoint)
    out = Path(out) if out is not None else Path(checkpoint) / "eval"
    rank = Rank.from_environment()
    console = Console(quiet=rank.index > 0)
    model, processor = load(folder, device or rank.device())
    rows: list[Row] = []
    for task in chosen:
        rows += evaluate(
            model,
            processor,
            task,
            data,
            name=name or Path(checkpoint).name,
            out=out,
            console=console,
            rank=rank,
            **options,
        )
    if rank.index == 0:
        results.write(rows, out / "results.json")
        console.print(results.table(rows))
        console.print(f"{out / 'results.json'}: {len(rows)} rows; every prompt and answer in {out / 'samples'}")
    return rows
