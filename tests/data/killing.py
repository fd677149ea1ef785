"""A kill at a call of a function, for tests of what is started again afterwards."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class KillAt:
    """Kills a process, as by ``kill -9``, at a call of a function; before it does anything."""

    owner: Any
    name: str
    call: int = 1

    def during(self, job: Callable[..., Any], *arguments: Any) -> None:
        """Run a job in a process of its own, which must not live to its end."""
        process = multiprocessing.get_context("fork").Process(target=self._run, args=(job, *arguments))
        process.start()
        process.join(300)
        assert process.exitcode == -signal.SIGKILL, f"{self} was not reached"

    def _run(self, job: Callable[..., Any], *arguments: Any) -> None:
        original, left = getattr(self.owner, self.name), self.call

        def dying(*given: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*given, **named)

        setattr(self.owner, self.name, dying)
        job(*arguments)
