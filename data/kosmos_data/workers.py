"""Loader processes that may die at any moment: each has its own pipe, so a killed worker is an end of file, not a hang.

``torch.utils.data.DataLoader`` sends the results of all its workers through one shared queue. A worker killed while it
writes leaves a lock taken and half a message behind, and the training process waits for ever; under the safe start
methods its death is not even noticed at once. Here nothing is shared, so nothing can be left in disorder.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

import torch

Produce: TypeAlias = Callable[[int, int], Iterator[Any]]
"""(number of this worker, number of workers) → its endless items; must be picklable."""

AHEAD = 2  # items that a worker prepares before it waits


class WorkerDied(RuntimeError):  # noqa: N818 - what happened, not what is wrong
    """A worker is gone without a word: killed, out of memory, or crashed in native code."""


class WorkerPool:
    """Processes that each produce items in order.

    Args:
        produce: called in each worker.
        workers: how many.
    """

    def __init__(self, produce: Produce, workers: int) -> None:
        # Not fork: threads of the trainer (collectives, CUDA, file-system clients) do not survive it.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["kosmos_data.loader", "kosmos.processing_kosmos"])
        self._connections: list[Connection] = []
        self.processes = []
        for number in range(workers):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(produce, number, workers, theirs), daemon=True)
            process.start()
            theirs.close()  # so that the worker's end is the only one, and its death closes the pipe
            self._connections.append(ours)
            self.processes.append(process)

    def next_items(self) -> list[Any]:
        """The next item of every worker.

        Raises:
            WorkerDied: a worker was killed.
            Exception: whatever ``produce`` raised; ValueError and OSError as they were, anything else as RuntimeError
                with its trace.
        """
        items = []
        for number, connection in enumerate(self._connections):
            try:
                item = connection.recv()
            except (EOFError, OSError) as error:
                raise WorkerDied(f"loader worker {number} of {len(self._connections)} died") from error
            if isinstance(item, BaseException):
                raise item
            items.append(item)
        return items

    def close(self) -> None:
        """End the workers and wait for them."""
        for connection in self._connections:
            connection.close()
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join()


def _work(produce: Produce, number: int, workers: int, connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    torch.set_num_threads(1)
    items: queue.Queue[Any] = queue.Queue(AHEAD)
    sender = threading.Thread(target=_send, args=(items, connection), daemon=True)
    sender.start()
    try:
        for item in produce(number, workers):
            items.put(item)
    except (ValueError, OSError) as error:
        items.put(error)
    except Exception:  # shown in the main process, which cannot know what to do about it either
        items.put(RuntimeError(f"loader worker {number} failed:\n{traceback.format_exc()}"))
    sender.join()


def _send(items: queue.Queue[Any], connection: Connection) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection.send(items.get())
    os._exit(0)  # nobody reads any more: the main process is gone or has closed the pool
