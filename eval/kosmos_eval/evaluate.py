"""Evaluate a model on a task: the one path behind ``kosmos eval``, the demo and the evaluation during training.

    rows = evaluate(model, processor, "easy_vqa", "corpora/starter/eval", shots=(0, 4), contexts=("image+text",))

Each pair (shots, context) is a run: prompts are built, answered in batches, logged item by item, then scored as a whole
(CIDEr may not be averaged over shards). Items are divided among ranks by image; nothing but files is exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from . import tasks
from .results import Row
from .session import Session
from .store import Rank
from .task_data import TaskData
from .tasks import Task


def evaluate(
    model: Any,
    processor: Any,
    task: Task | str | Path,
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
        model, processor: a Kosmos model, whose training mode is left as it was, and its processor.
        task: a task, its name, or the path of its YAML.
        data: the folder that the task's paths are relative to.
        shots: numbers of demonstrations.
        contexts: what the prompt contains, see prompts.py.
        limit: evaluate so many items, drawn by hash; the same ones for every model. None: all.
        few_shot_limit: the same for runs with demonstrations, whose prompts are long.
        seed: of shuffled images, sampling and the bootstrap; demonstrations have their own in the task.
        name: the model's name in the rows.
        out: folder for the per-sample logs (``samples/NAME/``); a later call resumes from them. None: nothing is
            written. batch_rows: prompts in a batch at most. console: where progress, the first prompt and remarks go;
            None: nowhere. rank: this process among several; default torchrun's environment. with_baselines: add
            majority, question-only and chance rows.

    Raises:
        ValueError, FileNotFoundError: unknown task or context, bad data, a prompt longer than the model takes.
    """
    loaded = task if isinstance(task, Task) else tasks.load(task)
    material = TaskData(loaded, data)
    material.check(shots, contexts)
    session = Session(model, processor, material, seed, name, out, batch_rows, console, rank)
    return session.evaluate(shots, contexts, limit, few_shot_limit, with_baselines)
