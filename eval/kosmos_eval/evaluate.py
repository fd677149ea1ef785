"""Evaluate a model on a task, or a checkpoint on several: the one path behind ``kosmos eval``, demo and training.

    rows = evaluate(model, processor, "easy_vqa", "corpora/starter/eval", shots=(0, 4), contexts=("image+text",))

Each pair (shots, context) is a run: prompts are built, answered in batches, logged item by item, then scored as a whole
(CIDEr may not be averaged over shards). Items are divided among ranks by image; nothing but files is exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from kosmos import extrapolation
from kosmos.loading import find_model, load
from kosmos.plain import escape
from kosmos.tables import show

from . import results, tasks
from .results import Row
from .sample_log import Rank
from .session import Session
from .task_data import TaskData
from .tasks import Task


def evaluate(
    model: Any,
    processor: Any,
    task: TaskData | Task | str | Path,
    data: str | Path,
    *,
    shots: Sequence[int] = (0,),
    contexts: Sequence[str] = ("image+text",),
    limit: int | None = None,
    few_shot_limit: int | None = None,
    seed: int = 0,
    name: str = "model",
    out: str | Path | None = None,
    batch_rows: int = 128,
    console: Console | None = None,
    rank: Rank | None = None,
    with_baselines: bool = True,
) -> list[Row]:
    """Evaluate a model and return result rows (see results.py); on ranks other than 0 an empty list.

    Args:
        model: a Kosmos model, whose training mode is left as it was.
        processor: the model's.
        task: a task, its name, or the path of its YAML; or a task whose data is read already.
        data: the folder that the task's paths are relative to.
        shots: numbers of demonstrations.
        contexts: what the prompt contains, see prompts.py.
        limit: evaluate so many items, drawn by hash; the same ones for every model. None: all.
        few_shot_limit: the same for runs with demonstrations, whose prompts are long.
        seed: of shuffled images, sampling and the bootstrap; demonstrations have their own in the task.
        name: the model's name in the rows.
        out: folder for the per-sample logs (``samples/NAME/``); a later call resumes from them. None: nothing is
            written.
        batch_rows: prompts in a batch at most.
        console: where progress, the first prompt and remarks go; None: nowhere.
        rank: this process among several; default torchrun's environment.
        with_baselines: add majority, question-only and chance rows.

    Raises:
        ValueError, FileNotFoundError: unknown task or context, bad data, a prompt longer than the model takes.
    """
    if not isinstance(task, TaskData):
        task = TaskData(task if isinstance(task, Task) else tasks.load(task), data)
    task.check(shots, contexts)
    session = Session(model, processor, task, seed, name, out, batch_rows, console, rank)
    return session.evaluate(shots, contexts, limit, few_shot_limit, with_baselines)


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
    adapter: str | Path | None = None,
    extrapolate: int | None = None,
    **asked: Any,
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
        out: default ``CHECKPOINT/eval``.
        shots: numbers of demonstrations.
        contexts: what the prompt contains.
        limit: evaluate so many items.
        adapter: a tuning of the checkpoint (``kosmos.tuning``): default name and folder are its own.
        extrapolate: read up to so many training lengths, by blockwise causal attention (``kosmos.extrapolation``).
        asked: other arguments of :func:`evaluate`.

    Raises:
        FileNotFoundError, ValueError: no such checkpoint, task, data or device; what ``evaluate`` raises.
    """
    find_model(checkpoint)
    shots, contexts = list(dict.fromkeys(shots)), list(dict.fromkeys(contexts))
    rank = Rank.from_environment()
    loaded = _read([tasks.load(task, overrides) for task in names], data)
    for one in loaded:
        one.check(shots, contexts)
        for most in (limit, asked.get("few_shot_limit")):
            one.subset(most)
    named = Path(checkpoint if adapter is None else adapter)
    out = Path(out) if out is not None else named / "eval"
    console = Console(emoji=False, quiet=rank.index > 0)
    model, processor = load(checkpoint, rank.device(device), adapters=[] if adapter is None else [adapter])
    if extrapolate is not None:
        longest = extrapolation.extrapolate(model, processor, extrapolate)
        console.print(f"up to {longest} tokens, by blockwise causal attention")
    rows: list[Row] = []
    for one in loaded:
        asked |= {"shots": shots, "contexts": contexts, "limit": limit, "console": console, "rank": rank, "out": out}
        fresh = evaluate(model, processor, one, data, name=name or named.name, **asked)
        if rank.index == 0:
            results.write(fresh, out / "results.json")
        rows += fresh
    if rank.index == 0:
        show(console, results.table(rows))
        where, answers = escape(str(out / "results.json")), escape(str(out / "samples"))
        console.print(f"{where}: {len(rows)} rows; every prompt and answer in {answers}", soft_wrap=True)
    return rows


def _read(chosen: Sequence[Task], data: str | Path) -> list[TaskData]:
    if not chosen:
        raise ValueError("no task is named; kosmos eval tasks lists them")
    names = [task.name for task in chosen]
    if len(set(names)) < len(names):
        raise ValueError(f"two tasks have one name: {', '.join(names)}; rename a YAML file")
    return [TaskData(task, data) for task in chosen]
