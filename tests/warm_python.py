"""Python processes that begin with torch imported: forked from one that has imported it, once for all tests.

A start costs 0.1 s instead of 4 s of a processor. What is imported beforehand reads nothing of the environment that a
test may set: no transformers, no huggingface_hub, nothing of ours.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

IMPORTED = ("numpy", "torch", "torchvision", "scipy.optimize", "scipy.sparse", "sympy", "PIL.Image", "triton")


@dataclass
class Process:
    """A started process: the part of ``subprocess.Popen`` that the tests need."""

    python: WarmPython
    pid: int
    returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, negative after a signal; None while it runs."""
        if self.returncode is None:
            self.returncode = self.python.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float = 500.0) -> int:
        """The exit code; TimeoutError after ``timeout`` seconds, and the process is killed."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                self.send_signal(signal.SIGKILL)
                raise TimeoutError(f"process {self.pid} still ran after {timeout:.0f} s")
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal to a process that still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)


class WarmPython:
    """The process from which the others are forked; it starts with the first of them."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def start(
        self,
        code: str,
        *arguments: str,
        folder: Path,
        environment: Mapping[str, str] = os.environ,
        session: bool = False,
    ) -> Process:
        """Do what ``python -c CODE ARGUMENTS…`` does; PYTHONPATH must be this process's own.

        Args:
            code: the program.
            arguments: its ``sys.argv[1:]``.
            folder: where it runs, and writes what it prints to ``stdout`` and ``stderr``.
            environment: all its variables.
            session: whether it leads a session of its own.
        """
        request = {"code": code, "arguments": arguments, "folder": str(folder), "session": session}
        return Process(self, self.ask({**request, "environment": dict(environment)}))

    def run(self, code: str, *arguments: str, folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """The same, waiting for the end."""
        returncode = self.start(code, *arguments, folder=folder, **options).wait()
        said, complained = ((folder / name).read_text() for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess(arguments, returncode, said, complained)

    def ask(self, request: dict[str, Any]) -> Any:
        """What the server answers."""
        if self._server is None:
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self._server = subprocess.Popen([sys.executable, __file__], **pipes)
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def close(self) -> None:
        """End the server; processes that still run go on."""
        if self._server is not None:
            self._server.communicate()


def serve() -> dict[str, Any] | None:
    """Fork a process for each request that comes, and return in it with the request; None when no more come."""
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # so that no collection in a forked process copies all their pages
    requests = os.fdopen(os.dup(0))  # sys.stdin stays unread: it is a forked process's own
    while line := requests.readline():
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        elif not (answer := os.fork()):
            requests.close()
            return request
        print(json.dumps(answer), flush=True)
    return None


def become(code: str, arguments: list[str], folder: str, session: bool, environment: dict[str, str]) -> None:
    """Be the process that was asked for. The interpreter ends as after any program, which one test is about."""
    if session:
        os.setsid()
    atexit.register(gc.unfreeze)  # what is frozen is never freed, and triton 3.9 reports that as leaks
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    sys.argv, sys.path[0] = ["-c", *arguments], ""
    sys.modules["__main__"] = program = ModuleType("__main__")
    exec(compile(code, "<string>", "exec"), program.__dict__)


if __name__ == "__main__":
    if asked := serve():
        become(**asked)
