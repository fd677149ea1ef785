"""Stages on datatrove's executors: local processes, Slurm job arrays, or Ray. Imported only when a pipeline runs.

A stage is a list of datatrove steps and a number of tasks. A task that is done leaves a mark in the stage's log folder
and is not done again; one that was killed runs again from its beginning. datatrove goes on when tasks failed, and a
later stage then reads half an input without a word (datatrove#157); here every stage begins with :class:`AllDone`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import shlex
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from loguru import logger
from rich.progress import Progress

from .. import extras
from .options import Execution

_PRELOADED = [
    "kosmos_data.web.executors",
    "kosmos_data.web.stages",
    "kosmos_data.web.text_quality",
    "kosmos_data.shards",
]
_DEATHS = 3  # worker pools that may break without a task being finished in between


@dataclass
class Stage:
    """Steps that run in order in each of ``tasks`` tasks; ``name`` is also its log folder's."""

    name: str
    steps: list[Any]
    tasks: int


@dataclass
class AllDone:
    """The first step of a stage: RuntimeError unless every task of the stage before has left its mark."""

    folder: str
    tasks: int

    def __call__(self, data: None, rank: int, world_size: int) -> None:
        if undone := undone_tasks(Path(self.folder), self.tasks):
            raise RuntimeError(f"{len(undone)} of {self.tasks} tasks of {self.folder} are not done: {undone[:10]}")


def run_stages(stages: list[Stage], work: Path, execution: Execution, progress: Progress) -> bool:
    """Run all stages in order, each task that is not done yet.

    Args:
        stages: in order.
        work: folder for logs; shared by all machines that take part.
        execution: the executor and its width.
        progress: gets a bar per stage.

    Returns:
        Whether everything is done; False when it was handed to Slurm.

    Raises:
        RuntimeError: tasks failed; the message names their log. ValueError and OSError when that is what they raised.
        ModuleNotFoundError: Ray is not installed.
    """
    for before, stage in pairwise(stages):
        stage.steps.insert(0, AllDone(str(_logs(work, before)), before.tasks))
    if execution.executor == "slurm":
        return _submit(stages, work, execution)
    for stage in stages:
        with _shown(progress, stage, _logs(work, stage)):
            try:
                _executor(stage, work, execution).run()
            except Exception as error:
                kind = type(error) if type(error) in (ValueError, OSError) else RuntimeError
                raise kind(f"stage {stage.name} failed: {error} (logs: {_logs(work, stage)}/logs)") from error
            AllDone(str(_logs(work, stage)), stage.tasks)(None, 0, 1)
    return True


def is_done(stage: Stage, work: Path) -> bool:
    """Whether every task of the stage has left its mark."""
    return not undone_tasks(_logs(work, stage), stage.tasks)


def undone_tasks(folder: Path, tasks: int) -> list[int]:
    """Numbers of the tasks without a completion mark."""
    done = {path.name for path in (folder / "completions").glob("*")}
    return [task for task in range(tasks) if f"{task:05d}" not in done]


class LocalExecutor(LocalPipelineExecutor):
    """datatrove's local executor on a pool that notices the death of a worker.

    ``multiprocessing.Pool``, which datatrove uses, waits for ever for the task of a killed worker. Here the pool
    breaks, and the tasks that are not done run in a new one. Workers end with their parent, whatever ended it.
    """

    pipeline: list[Any]

    def run(self) -> None:
        deaths, before = 0, -1
        while ranks := self.get_incomplete_ranks():
            deaths = deaths + 1 if len(ranks) == before else 0
            before = len(ranks)
            try:
                self._run(ranks)
            except BrokenProcessPool as error:
                if deaths >= _DEATHS:
                    message = f"workers died {deaths + 1} times on tasks {ranks[: self.workers]}: out of memory?"
                    raise RuntimeError(message) from error

    def _run(self, ranks: list[int]) -> None:
        workers = min(self.workers, len(ranks))
        if workers == 1:
            pipeline = self.pipeline
            for rank in ranks:
                self.pipeline = deepcopy(pipeline)  # steps count in themselves
                self._run_for_rank(rank, local_rank=1)  # other than 0: no log on the terminal
            return
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        with ProcessPoolExecutor(workers, context, initializer=_begin_worker) as pool:
            futures = [pool.submit(self._run_for_rank, rank, 1) for rank in ranks]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


class RayExecutor(RayPipelineExecutor):
    """datatrove's Ray executor with plain Ray tasks.

    datatrove starts an actor per task, and a forked process pool in it; the fork of a process with Ray's threads now
    and then never returns. Ray's own workers serve all stages, and Ray runs the task of one that dies again.
    """

    def run(self) -> None:
        import ray

        ranks = self.get_incomplete_ranks()
        batches = [ranks[start : start + self.tasks_per_job] for start in range(0, len(ranks), self.tasks_per_job)]
        executor = ray.put(self)
        memory = int(self.mem_per_cpu_gb * 2**30)
        task = ray.remote(num_cpus=1, memory=memory, max_retries=_DEATHS)(_run_ranks)
        running: list[Any] = []
        try:
            while batches or running:
                while batches and len(running) < self.workers:
                    running.append(task.remote(executor, batches.pop(0)))
                done, running = ray.wait(running)
                ray.get(done)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error


def _run_ranks(executor: RayExecutor, ranks: list[int]) -> None:
    for rank in ranks:
        PipelineExecutor._run_for_rank(executor, rank, local_rank=1)


def _executor(stage: Stage, work: Path, execution: Execution, **further: Any) -> PipelineExecutor:
    shared: dict[str, Any] = {
        "pipeline": stage.steps,
        "tasks": stage.tasks,
        "logging_dir": str(_logs(work, stage)),
        **further,
    }
    if execution.executor == "local":
        workers = execution.workers or os.cpu_count() or 1
        return LocalExecutor(**shared, workers=min(workers, stage.tasks))
    shared |= {"workers": execution.workers or -1, "tasks_per_job": execution.tasks_per_job}
    if execution.executor == "ray":
        with extras.hint("ray>=2.50"):
            import ray
        if not ray.is_initialized():
            ray.init()
        logger.disable("datatrove.executor.ray")  # every stage would warn that the folder must be shared
        return RayExecutor(**shared, mem_per_cpu_gb=execution.ray_memory_gb)
    slurm = execution.slurm
    if not slurm.partition:
        raise ValueError("executor slurm needs execution.slurm.partition=NAME")
    return SlurmPipelineExecutor(
        **shared,
        time=slurm.time,
        partition=slurm.partition,
        mem_per_cpu_gb=slurm.memory_gb,
        job_name=f"kosmos-{stage.name}",
        qos="",
        env_command=f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH",
        sbatch_args=dict(slurm.sbatch),
    )


def _submit(stages: list[Stage], work: Path, execution: Execution) -> bool:
    """Hand every stage that is not done to Slurm, each to start when the one before has succeeded."""
    executor = _executor(stages[0], work, execution)
    for stage in stages[1:]:
        executor = _executor(stage, work, execution, depends=executor)
    executor.run()  # which submits those that it depends on
    return is_done(stages[-1], work)  # only where sbatch runs the jobs at once


def _logs(work: Path, stage: Stage) -> Path:
    return work / "logs" / stage.name


@contextlib.contextmanager
def _shown(progress: Progress, stage: Stage, logs: Path) -> Iterator[None]:
    """A bar that follows the completion marks, which every executor leaves."""
    bar = progress.add_task(stage.name, total=stage.tasks)
    over = threading.Event()

    def follow() -> None:
        while not over.wait(0.5):
            progress.update(bar, completed=stage.tasks - len(undone_tasks(logs, stage.tasks)))

    watcher = threading.Thread(target=follow, daemon=True)
    watcher.start()
    try:
        yield
        progress.update(bar, completed=stage.tasks)
    finally:
        over.set()
        watcher.join()


def _begin_worker() -> None:
    """In a worker: leave at once when the parent is gone, so that no orphan writes beside a second run.

    What it logs goes to its file; on the terminal it would tear the progress bars.
    """
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for the life of the process
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
