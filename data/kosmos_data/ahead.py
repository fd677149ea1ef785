"""The next batch is received, collated and made ready by a thread while the trainer computes with this one.

Unpickling and stacking the pictures of a step takes tens of milliseconds; on the training thread a GPU would wait for
them at every step.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
_PATIENCE = 10.0  # seconds that closing waits for a batch that is being made


class Ahead(Iterator[T], Generic[T]):
    """Iterate over ``source`` one item ahead, in a thread; what ``source`` raises is raised in its turn.

    Args:
        source: asked by the thread alone.
        prepare: called in the thread with each item, which it may change.
    """

    def __init__(self, source: Iterator[T], prepare: Callable[[T], None]) -> None:
        self._source, self._prepare = source, prepare
        self._made: queue.Queue[T | BaseException] = queue.Queue(1)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="kosmos-ahead", daemon=True)
        self._thread.start()

    def __next__(self) -> T:
        """The next item, with whatever making it raised."""
        if self._closed.is_set():
            raise StopIteration
        made = self._made.get()
        if isinstance(made, BaseException):
            self._closed.set()
            raise made
        return made

    def close(self) -> None:
        """Stop the thread behind the item that it makes; of one that hangs it is not waited for long."""
        self._closed.set()
        self._thread.join(_PATIENCE)

    def _work(self) -> None:
        while not self._closed.is_set():
            made: T | BaseException
            try:
                made = next(self._source)
                self._prepare(made)
            except BaseException as error:
                made = error
            self._put(made)
            if isinstance(made, BaseException):
                return

    def _put(self, made: T | BaseException) -> None:
        while not self._closed.is_set():
            try:
                return self._made.put(made, timeout=0.1)
            except queue.Full:  # nobody has taken the last one yet; if nobody will, close() has been called
                continue
