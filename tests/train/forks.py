"""Processes for tests of several ranks: forked from a server that has imported everything already."""

from __future__ import annotations

import faulthandler
import gc
import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker, util
from pathlib import Path
from typing import Any
from unittest.mock import patch

PRELOAD = [
    *("torch", "transformers", "deepspeed", "open_clip", "jsonargparse", "kosmos.processing_kosmos"),
    *(
        "kosmos.modeling_kosmos",
        "kosmos_data.loader",
        "kosmos_train.pretrain",
        "kosmos_train.loop",
        "kosmos_train.build",
    ),
    *("kosmos.tuning.storage", "peft"),
    "deepspeed.runtime.zero.muon.muon_optimizer",  # DeepSpeed imports it, and torch's compiler with it, in each process
    *("deepspeed.comm.mori", "deepspeed.module_inject.auto_ep_layer", "deepspeed.utils.pin_memory"),  # so it does these
    "transformers.models.auto.image_processing_auto",
    "tests.train.first_run",  # the server looks for it from the root, where the tests are started
]


LONGEST = 500.0
"""Seconds that a healthy job may take on the slowest machine; ``timeout`` in pyproject.toml is longer."""


def context() -> Any:
    """The fork server's context; it starts with the first process."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["DS_ACCELERATOR"] = "cpu"
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(PRELOAD)
    return made


def fork_the_server() -> None:
    """Fork the server from this process, instead of starting an interpreter that imports all that is here already.

    To be called before the first test: its threads would not be there, and their locks might be taken.
    """
    context()
    resource_tracker.ensure_running()  # which is an interpreter of its own
    with patch.object(util, "spawnv_passfds", _fork):
        forkserver.ensure_running()


def _fork(_program: bytes, arguments: Sequence[str], passed: Sequence[int]) -> int:
    """Do the work of ``python -c CODE`` without its start: what belongs to pytest here is put away."""
    if number := os.fork():
        return number
    try:
        forkserver._forkserver._lock.release()  # held while a server is started, and a child may want one of its own
        nothing = os.open(os.devnull, os.O_RDWR)
        for file in {int(name) for name in os.listdir("/proc/self/fd")} - {nothing, *passed}:
            os.dup2(nothing, file)  # a closed one would be opened again as another file, under an object of pytest's
        sys.stdin, sys.stdout, sys.stderr = (open(at, mode, 1, closefd=False) for at, mode in enumerate("rww"))  # noqa: SIM115
        faulthandler.disable()
        logging.root.handlers.clear()
        exec(arguments[-1], {})
    finally:
        os._exit(1)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Job:
    """The running ranks of one job."""

    processes: list[Any]
    folder: Path

    def kill(self, rank: int) -> None:
        """kill -9."""
        self.signal(rank, signal.SIGKILL)

    def signal(self, rank: int, number: int) -> None:
        """Send a signal to a rank that still runs."""
        if self.processes[rank].is_alive():
            os.kill(self.processes[rank].pid, number)

    def wait(self, seconds: float = 120.0) -> list[int]:
        """Exit codes of all ranks; those that still run after ``seconds`` are killed and count as -9."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        for process in self.processes:
            if process.is_alive():
                process.kill()
                process.join()
        return [process.exitcode for process in self.processes]

    def alive(self) -> bool:
        """True while a rank runs."""
        return any(process.is_alive() for process in self.processes)

    def output(self, rank: int = 0) -> str:
        """What a rank has printed."""
        return (self.folder / f"rank{rank}.txt").read_text()

    def results(self) -> list[Any]:
        """What the function returned on each rank, which must all have ended well.

        How fast they are is no matter here: only a job that hangs is given up, before pytest's own limit.
        """
        codes = self.wait(LONGEST)
        assert codes == [0] * len(codes), "\n".join(self.output(rank)[-3000:] for rank in range(len(codes)))
        return [json.loads((self.folder / f"rank{rank}.json").read_text()) for rank in range(len(codes))]


def launch(folder: Path, size: int, function: Callable[..., Any], *arguments: Any) -> Job:
    """Call ``function(*arguments)`` on ``size`` ranks of a new process group; it must be importable by its name."""
    return launch_each(folder, [(function, *arguments)] * size)


def launch_each(folder: Path, calls: list[tuple[Any, ...]]) -> Job:
    """One call, ``(function, *arguments)``, for each rank of a new process group."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    processes = [
        context().Process(target=_run, args=(folder, rank, len(calls), port, function, arguments))
        for rank, (function, *arguments) in enumerate(calls)
    ]
    for process in processes:
        process.start()
    return Job(processes, folder)


def _run(folder: Path, rank: int, size: int, port: int, function: Callable[..., Any], arguments: Any) -> None:
    # The libraries' million objects stay: DeepSpeed collects garbage for every engine under ZeRO-3, half a second each.
    gc.freeze()
    with (folder / f"rank{rank}.txt").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    result = function(*arguments)
    (folder / f"rank{rank}.json").write_text(json.dumps(result))
    sys.stdout.flush()
