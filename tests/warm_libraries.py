"""Python processes that begin with all libraries imported, transformers, DeepSpeed and our own packages too.

An interpreter needs ten seconds of a processor to import them. These are forked from the server that forks the ranks of
the tests, so they suit what is about neither the start of an interpreter nor a variable that a library reads when it is
imported (``HF_HOME``, ``HF_HUB_OFFLINE``); :mod:`.warm_python` has torch alone.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

# What `program` writes: signals and the exit code pass through it, and its files are the process's own.
CLIENT = """#!{python} -IS
import json, os, signal, socket, sys

door = socket.socket(socket.AF_UNIX)
door.connect({address!r})
request = {{"words": sys.argv, "folder": os.getcwd(), "environment": dict(os.environ)}}
socket.send_fds(door, [json.dumps(request).encode() + b"\\n"], [0, 1, 2])
process = int(door.recv(16))

def hand_on(number, _):
    try:
        os.kill(process, number)
    except ProcessLookupError:  # it has just ended
        pass

for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, hand_on)
code = int(door.recv(16))
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


_STARTED: list[BaseProcess] = []
_LOCK = threading.Lock()
"""A start looks for processes that have ended, and two threads must not read the same exit code."""


def start(
    words: Sequence[str], folder: Path, environment: Mapping[str, str] = os.environ, session: bool = False
) -> BaseProcess:
    """Do what ``python WORDS…`` does.

    Args:
        words: ``-m MODULE``, ``-c CODE`` or a script, with arguments.
        folder: where it runs, and writes what it prints to ``stdout`` and ``stderr``.
        environment: all its variables.
        session: whether it leads a session of its own.
    """
    opened = [os.open(os.devnull, os.O_RDONLY)]
    opened += [os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644) for name in ("stdout", "stderr")]
    return _start(
        {"words": [sys.executable, *words], "folder": str(folder), "environment": dict(environment)}, opened, session
    )


@contextmanager
def program(path: Path) -> Iterator[str]:
    """Write a program to ``path`` that stands in for the interpreter, and serve it within the block.

    Launchers start an interpreter for each node and each rank; where a test is about what they say to each other, this
    is the one that they find.
    """
    with TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        address = f"{folder}/door"  # which may be 100 characters long
        listener.bind(address)
        listener.listen()
        path.write_text(CLIENT.format(python=sys.executable, address=address))
        path.chmod(0o755)
        threading.Thread(target=_accept, args=(listener,), daemon=True).start()
        yield str(path)
        listener.shutdown(socket.SHUT_RDWR)


def _accept(listener: socket.socket) -> None:
    with suppress(OSError):  # the block has ended
        while True:
            threading.Thread(target=_serve, args=(listener.accept()[0],), daemon=True).start()


def _serve(door: socket.socket) -> None:
    """Fork the process of one request; answer with its number, and with its exit code when it has ended."""
    with door, suppress(BrokenPipeError):  # the program may have been killed
        text, files, _, _ = socket.recv_fds(door, 1 << 16, 3)
        while not text.endswith(b"\n"):
            text += (more := door.recv(1 << 16))
            if not more:
                return
        process = _start(json.loads(text), files)
        door.sendall(str(process.pid).encode())
        if process.sentinel not in wait([process.sentinel, door]):  # killed, and with it what it stands for
            process.kill()
            wait([process.sentinel])
        with _LOCK:
            process.join()
        door.sendall(str(process.exitcode).encode())


def _start(request: dict[str, Any], files: Sequence[int], session: bool = False) -> BaseProcess:
    from forks import context  # tests/train, which the first conftest.py has put on the path

    process = context().Process(target=_be, args=(request, [DupFd(file) for file in files], session))
    with _LOCK:
        process.start()
    _STARTED.append(process)
    for file in files:
        os.close(file)
    return process


def end() -> None:
    """Kill what a failed test has left: multiprocessing would wait for it."""
    for process in _STARTED:
        if process.is_alive():
            process.kill()


def _be(request: dict[str, Any], files: Sequence[Any], session: bool) -> None:
    """Be the process that was asked for."""
    if session:
        os.setsid()
    gc.freeze()  # so that no collection copies all pages of the libraries
    for number, file in enumerate(files):
        os.dup2(file.detach(), number)
    # Those that were there believe that their files are the server's.
    sys.stdin, sys.stdout, sys.stderr = (open(at, mode, 1, closefd=False) for at, mode in enumerate("rww"))  # noqa: SIM115
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.executable, *words = request["words"]  # a launcher starts its ranks with it
    while words[0].startswith("-") and words[0] not in ("-c", "-m"):  # of the interpreter
        del words[0]
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.modules["__main__"] = main = ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), main.__dict__)
    elif words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
