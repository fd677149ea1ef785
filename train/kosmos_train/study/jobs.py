"""Jobs of a study, several at a time: each in a process of its own, finished ones never repeated.

A small model uses two cores better as two runs of one thread each than as one run of two. A job leaves ``arm.json`` in
its folder when it is done; after a kill the study starts again and finds it there. What a job prints goes to
``log.txt`` beside it, how far it is shows the number of lines in its ``metrics.jsonl``.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from kosmos.atomic import write_atomically

if TYPE_CHECKING:
    from ..config import TrainConfig

Figures = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One thing to do."""

    name: str
    work: Callable[[Path], Figures]
    """What to do in the folder; it must be picklable, for example a ``functools.partial`` of a module's function."""
    folder: Path
    settings: dict[str, Any]
    """What makes the job what it is; a folder with other settings is refused."""
    steps: int
    """Lines that its ``metrics.jsonl`` will have."""
    cost: float
    """FLOPs, to weigh the jobs in the progress bar."""
    after: tuple[str, ...] = field(default=())
    """Jobs that must be done before."""

    def finished(self) -> Figures | None:
        """What ``arm.json`` says, or None if the job is still to be done.

        Raises:
            ValueError: the folder holds a job with other settings.
        """
        path = self.folder / "arm.json"
        if not path.is_file():
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["settings"] != json.loads(json.dumps(self.settings)):
            changed = sorted(key for key in self.settings if found["settings"].get(key) != self.settings[key])
            raise ValueError(
                f"{self.folder} was made with other settings ({', '.join(changed) or 'other fields'}); give another "
                "run=DIR, or remove the folder to make it again"
            )
        return found["figures"]

    def done_steps(self) -> int:
        """Steps so far."""
        path = self.folder / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.is_file() else 0


def do(job: Job) -> Figures:
    """Do one job in this process and write its ``arm.json``.

    ``seconds`` are those of the clock, ``processor_seconds`` those that this process computed: on a machine that other
    programs use as well only the latter say what a job costs.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    began, computed = time.perf_counter(), time.process_time()
    figures = job.work(job.folder)
    spent = {"seconds": time.perf_counter() - began, "processor_seconds": time.process_time() - computed}
    figures |= {name: round(value, 1) for name, value in spent.items()}
    text = json.dumps({"settings": job.settings, "figures": figures}, indent=1)
    write_atomically(job.folder / "arm.json", text)
    return json.loads(text)["figures"]


def do_all(jobs: Sequence[Job], workers: int, console: Console) -> dict[str, Figures]:
    """Do what is not done yet, at most ``workers`` at a time (1: in this process); figures by name, in order.

    Raises:
        ValueError: a folder with other settings, or a job that failed; its reason is in the message.
    """
    known = {job.name: figures for job in jobs if (figures := job.finished()) is not None}
    waiting = [job for job in jobs if job.name not in known]
    with _Bars(jobs, known, console) as bars:
        if workers == 1:
            for job in waiting:
                bars.begin(job)
                known[job.name] = do(job)
                bars.end(job)
        elif waiting:
            with _pool(min(workers, len(waiting))) as pool:
                _spread(waiting, known, list(pool), bars)
    return {job.name: known[job.name] for job in jobs}


def _spread(waiting: list[Job], known: dict[str, Figures], idle: list[Connection], bars: _Bars) -> None:
    """Hand jobs to idle workers as soon as what they need is done."""
    running: dict[Connection, Job] = {}
    while waiting or running:
        for job in [job for job in waiting if all(name in known for name in job.after)][: len(idle)]:
            worker = idle.pop()
            worker.send(job)
            waiting.remove(job)
            running[worker] = job
            bars.begin(job)
        assert running, "every job waits for another one"
        ready = wait(list(running), timeout=1.0)
        for worker in [one for one in running if one in ready]:
            job = running.pop(worker)
            try:
                figures, problem = worker.recv()
            except EOFError:
                figures, problem = None, "its process has died"
            if figures is None:
                raise ValueError(f"{job.name}: {problem} (see {job.folder / 'log.txt'}); the others are kept")
            known[job.name] = figures
            bars.end(job)
            idle.append(worker)
        bars.move()


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[list[Connection]]:
    """Processes that wait for jobs; they end with the block, or when this process dies."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    # As fresh as spawned ones, and where a fork server runs already they find its imports done.
    context = multiprocessing.get_context("forkserver")
    ends, processes = [], []
    for _ in range(workers):
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, threads), daemon=True)
        process.start()
        theirs.close()
        ends.append(ours)
        processes.append(process)
    try:
        yield ends
    except BaseException:
        for process in processes:
            process.terminate()  # a run saves its step first, as after any signal
        raise
    finally:
        for end in ends:
            end.close()  # an idle worker takes this for the end
        for process in processes:
            process.join()


def _work(jobs: Connection, threads: int) -> None:
    """A worker process: one job after the other."""
    import torch

    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = str(threads)  # also tells default_threads that somebody has chosen
    torch.set_num_threads(threads)
    while (job := _receive(jobs)) is not None:
        job.folder.mkdir(parents=True, exist_ok=True)
        with (
            (job.folder / "log.txt").open("a", encoding="utf-8") as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            try:
                jobs.send((do(job), ""))
            except Exception as error:  # told to the study, which names the job and ends
                traceback.print_exc()
                jobs.send((None, f"{type(error).__name__}: {error}"))


def train_to_the_end(config: TrainConfig, folder: Path) -> None:
    """Do a run of a job, or the rest of it.

    Raises:
        RuntimeError: a signal ended it.
    """
    from ..pretrain import train  # it imports torch, the process that hands out the jobs needs none

    if not train(config, folder, resume=True).finished:
        raise RuntimeError("a signal ended it; start the study again to go on")


def _receive(jobs: Connection) -> Job | None:
    """The next job, or None when there will be none."""
    try:
        return jobs.recv()
    except EOFError:
        return None


def _end_with_parent() -> None:
    """A study that was killed leaves no run behind that would write into the folders of the next."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class _Bars:
    """One bar for the whole study by FLOPs, and one for each running job by steps."""

    def __init__(self, jobs: Sequence[Job], known: dict[str, Figures], console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
        self.progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
        self.console = console
        self.done = sum(job.cost for job in jobs if job.name in known)
        self.began = time.perf_counter()
        self.whole = self.progress.add_task(f"{len(jobs)} jobs", total=sum(job.cost for job in jobs))
        self.running: dict[str, tuple[Job, TaskID]] = {}
        for job in jobs:
            if job.name in known:
                console.print(f"{job.name}: done before")

    def __enter__(self) -> _Bars:
        self.progress.start()
        self.move()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def begin(self, job: Job) -> None:
        self.running[job.name] = job, self.progress.add_task(job.name, total=job.steps)

    def end(self, job: Job) -> None:
        self.progress.remove_task(self.running.pop(job.name)[1])
        self.done += job.cost
        self.console.print(f"{job.name}: done, {(time.perf_counter() - self.began) / 60:.1f} min since the start")
        self.move()

    def move(self) -> None:
        """Read how far the running jobs are."""
        partly = 0.0
        for job, task in self.running.values():
            steps = min(job.done_steps(), job.steps)
            partly += job.cost * steps / job.steps
            self.progress.update(task, completed=steps)
        self.progress.update(self.whole, completed=self.done + partly)
