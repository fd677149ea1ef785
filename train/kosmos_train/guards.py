"""Guards: bad losses and gradients, bad samples, steps that never end.

Every figure judged here is a sum over all ranks, so all ranks reach the same verdict; a decision taken on one rank
alone would leave the others waiting for ever.
"""

from __future__ import annotations

import faulthandler
import math
import os
import signal
import statistics
import sys
import time
import traceback
from collections import deque
from pathlib import Path
from types import FrameType
from typing import IO, Any

from .config import GuardConfig

MIN_HISTORY = 16


class TrainingStoppedError(ValueError):
    """A guard ended the run; the message says why and what to do."""


class SpikeGuard:
    """Names the reason to skip an update: NaN, Inf, or far above the recent median."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.losses: deque[float] = deque(maxlen=config.window)
        self.norms: deque[float] = deque(maxlen=config.window)
        self.skipped_in_row = 0

    def judge_loss(self, loss: float) -> str | None:
        """Reason to skip, from the step's loss."""
        return self._judge("loss", loss, self.losses)

    def judge_norm(self, norm: float) -> str | None:
        """Reason to skip, from the norm of the whole gradient."""
        return self._judge("gradient norm", norm, self.norms)

    def record(self, loss: float, norm: float, skipped: str | None) -> None:
        """Add a step to the history; only steps that were taken count towards the median."""
        if skipped is not None:
            self.skipped_in_row += 1
            return
        self.skipped_in_row = 0
        self.losses.append(loss)
        self.norms.append(norm)

    @property
    def exhausted(self) -> bool:
        """So many skips in a row that skipping does not help."""
        return self.skipped_in_row >= self.config.max_skipped

    def state(self) -> dict[str, Any]:
        """For the checkpoint, so that a resumed run judges as the uninterrupted one would."""
        return {"losses": list(self.losses), "norms": list(self.norms), "skipped_in_row": self.skipped_in_row}

    def load(self, state: dict[str, Any]) -> None:
        """Take up a saved history."""
        self.losses.clear()
        self.norms.clear()
        self.losses.extend(state["losses"])
        self.norms.extend(state["norms"])
        self.skipped_in_row = state["skipped_in_row"]

    def _judge(self, name: str, value: float, history: deque[float]) -> str | None:
        if not math.isfinite(value):
            return f"{name} is {value}"
        if self.config.spike > 0 and len(history) >= MIN_HISTORY:
            median = statistics.median(history)
            if value > self.config.spike * median:
                return f"{name} {value:.4g} is over {self.config.spike:g} x the median {median:.4g} of recent steps"
        return None


class Interrupt:
    """Remembers SIGTERM, SIGUSR1 or Ctrl-C until the loop asks; a preempted job saves and leaves in order.

    A second Ctrl-C ends the process at once, as Ctrl-C does elsewhere.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        for number in self.SIGNALS:
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.received == "SIGINT":
                raise KeyboardInterrupt
            if int(os.environ.get("RANK", "0")) == 0:  # all of a machine hear it
                print("\nsaving after this step; Ctrl-C again ends at once", file=sys.stderr)
        self.received = signal.Signals(number).name


class Watchdog:
    """Ends a process whose loop stands still, after writing the stack of every thread to a file.

    faulthandler's own timer thread does the work, so it fires also when Python is stuck in a collective. All ranks
    stand still and time out together; one that fails because a peer was a moment faster says where it stood, too.
    """

    def __init__(self, minutes: float, path: Path) -> None:
        self.seconds = minutes * 60
        self.path = path
        self._since = 0.0
        self._file: IO[str] | None = None

    def __enter__(self) -> Watchdog:
        if self.seconds > 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("w", encoding="utf-8")
            self.beat()
        return self

    def beat(self) -> None:
        """A step is done: start the clock again."""
        if self._file is not None:
            self._since = time.monotonic()
            faulthandler.dump_traceback_later(self.seconds, exit=True, file=self._file)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, stack: object) -> None:
        if self._file is None:
            return
        faulthandler.cancel_dump_traceback_later()
        stood_still = error is not None and time.monotonic() - self._since > 0.9 * self.seconds
        if stood_still:
            traceback.print_exception(error, file=self._file)
        self._file.close()
        if not stood_still:
            self.path.unlink()
