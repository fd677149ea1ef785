"""Evaluate a checkpoint folder on several tasks and write ``results.json``: what ``kosmos eval CHECKPOINT`` calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from kosmos.loading import find_checkpoint, load

from . import results, tasks
from .results import Row
from .session import Session
from .store import Rank
from .task_data import TaskData
from .tasks import Task


def evaluate_checkpoint(
    checkpoint: str | Path,
    names: Sequence[str | Path],
    data: str | Path,
    *,
    overrides: Sequence[str] = (),
    device: str | None = None,
    name: str | None = None,
    out: str | Path | None = None,
    shots: Sequence[int] = (0,),
    contexts: Sequence[str] = ("image+text",),
    limit: int | None = None,
    few_shot_limit: int | None = None,
    seed: int = 0,
    batch_rows: int = 128,
) -> list[Row]:
    """Evaluate a checkpoint on tasks; prints one table, and writes ``samples/`` and, after each task, ``results.json``.

    All tasks are read and checked before the model is loaded. Under torchrun the items are shared among the ranks; rank
    0 writes and returns the rows.

    Args:
        checkpoint: a checkpoint folder or a run directory.
        names: task names or YAML paths.
        data: folder that the tasks' paths are relative to.
        overrides: ``key=value`` for every task's YAML.
        device: where the model runs; default a GPU (of this rank) if there is one.
        name: the model's name in the rows; default the folder's.
        out: default ``CHECKPOINT/eval``. The other arguments are those of :func:`kosmos_eval.evaluate.evaluate`.

    Raises:
        FileNotFoundError, ValueError: no such checkpoint, task, data or device; what ``evaluate`` raises.
    """
    folder, rank = find_checkpoint(checkpoint), Rank.from_environment()
    loaded = _read([tasks.load(task, overrides) for task in names], data)
    for one in loaded:
        one.check(shots, contexts)
        one.subset(limit)
    out = Path(out) if out is not None else Path(checkpoint) / "eval"
    console = Console(quiet=rank.index > 0)
    model, processor = load(folder, rank.device(device))
    rows: list[Row] = []
    for one in loaded:
        session = Session(
            model, processor, one, seed, name or Path(checkpoint).name, out, batch_rows, console=console, rank=rank
        )
        fresh = session.evaluate(shots, contexts, limit, few_shot_limit, with_baselines=True)
        if rank.index == 0:
            results.write(fresh, out / "results.json")
        rows += fresh
    if rank.index == 0:
        console.print(results.table(rows))
        console.print(f"{out / 'results.json'}: {len(rows)} rows; every prompt and answer in {out / 'samples'}")
    return rows


def _read(chosen: Sequence[Task], data: str | Path) -> list[TaskData]:
    if not chosen:
        raise ValueError("no task is named; kosmos eval tasks lists them")
    names = [task.name for task in chosen]
    if len(set(names)) < len(names):
        raise ValueError(f"two tasks have one name: {', '.join(names)}; rename a YAML file")
    return [TaskData(task, data) for task in chosen]
