"""Task scores during training: what ``kosmos eval`` measures, on the weights as they are at a step.

One path: :func:`kosmos_eval.evaluate.evaluate`, its items divided among the ranks. Nothing of the training changes: the
model computes without dropout, and every micro-batch seeds its own random numbers (engine.seed_everything).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kosmos.plain import styled
from kosmos.tuning import attach
from kosmos_eval import results, tasks
from kosmos_eval.evaluate import evaluate
from kosmos_eval.sample_log import Rank
from kosmos_eval.task_data import TaskData

from .config import EvalConfig, EvalTask
from .distributed import World
from .engine import Engine

Scores = dict[str, dict[str, float]]


class TaskEvaluator:
    """Evaluates ``eval.tasks`` at a step; rows, prompts and answers are kept under ``RUN/eval/step-000100/``.

    Raises:
        ValueError, FileNotFoundError: on all ranks, a task that could not be evaluated: its name, data, shots, context.
    """

    def __init__(self, config: EvalConfig, processor: Any, folder: Path, world: World) -> None:
        self.config, self.processor, self.folder = config, processor, folder
        world.attempt("opening eval.tasks", lambda: check_tasks(config))

    def run(self, step: int, engine: Engine, say: Callable[[str], None], go_on: Callable[[], bool]) -> Scores:
        """Scores by task and number of shots, then by metric; on ranks other than 0 empty.

        Args:
            go_on: asked by all ranks together before each task; False leaves out the rest.
        """
        rank = Rank(engine.world.rank, engine.world.size)
        scores: Scores = {}
        with whole_model(engine) as model, engine.uncompiled():
            for wanted in self.config.tasks:
                if not go_on():
                    say("[yellow]signal: the rest of the evaluation is left out[/yellow]")
                    break
                rows = self._rows(wanted, model, self.folder / f"step-{step:06d}", rank)
                for name, metrics in scores_of(rows).items():
                    scores[name] = metrics
                    shown = "  ".join(f"{metric} {value:.4g}" for metric, value in metrics.items())
                    say(f"  {styled('cyan', name)} {shown}")
        return scores

    def _rows(self, wanted: EvalTask, model: Any, out: Path, rank: Rank) -> list[results.Row]:
        rows = evaluate(
            model,
            self.processor,
            wanted.task,
            wanted.data,
            shots=wanted.shots,
            contexts=wanted.contexts,
            limit=wanted.limit,
            name=out.name,
            out=out,
            batch_rows=self.config.batch_rows,
            rank=rank,
            with_baselines=False,
        )
        if rank.index == 0:
            results.write(rows, out / "results.json")
        return rows


def check_tasks(config: EvalConfig) -> None:
    """Read what the tasks ask for, so that a mistake shows before the first step.

    Raises:
        ValueError, FileNotFoundError: unknown task, metric or context, missing or bad data, no demonstrations.
    """
    for wanted in config.tasks:
        TaskData(tasks.load(wanted.task), wanted.data).check(wanted.shots, wanted.contexts)


def scores_of(rows: list[results.Row]) -> Scores:
    """Rows of ``results.json`` as name → metric → value; the name tells the context if it is not the usual one."""
    scores: Scores = {}
    for row in rows:
        context = "" if row["context"] == "image+text" else f" {row['context']}"
        scores.setdefault(f"{row['task']} {row['shots']}-shot{context}", {})[row["metric"]] = row["value"]
    return scores


@contextmanager
def whole_model(engine: Engine) -> Iterator[Any]:
    """A model that each rank can call as often as it likes, with this step's weights.

    Under ZeRO-3 every forward pass is a collective, and ranks have different numbers of prompts; so there it is a copy.
    """
    if engine.config.engine.zero_stage < 3:
        yield engine.model
        return
    weights, config = engine.full_weights(True), copy.deepcopy(engine.model.config)
    if engine.config.tuning is None:
        model = type(engine.model).from_pretrained(None, config=config, state_dict=weights, dtype=engine.dtype)
    else:
        model = type(engine.model)(config)
        attach(model, engine.config.tuning)
        model.load_state_dict(weights)
        model.to(engine.dtype)
    model.generation_config = engine.model.generation_config
    yield model.to(engine.world.device)
