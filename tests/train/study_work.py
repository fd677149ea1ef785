"""Work for the jobs of test_study.py, importable by name in a worker process."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any


def note(text: str, folder: Path) -> dict[str, Any]:
    """Say when it ran and in which process."""
    began = time.time()
    (folder / "metrics.jsonl").write_text("{}\n")
    return {"text": text, "process": os.getpid(), "began": began, "ended": time.time()}


def meet(other: str, folder: Path) -> dict[str, Any]:
    """End only when the job in the folder beside has begun."""
    figures, deadline = note(other, folder), time.monotonic() + 120
    while not (folder.parent / other / "metrics.jsonl").exists():
        assert time.monotonic() < deadline, f"{other} never began"
        time.sleep(0.01)
    return figures | {"ended": time.time()}


def fail(other: str, folder: Path) -> dict[str, Any]:
    """Fail, but not before the job in the folder beside has begun."""
    meet(other, folder)
    raise ValueError("asked to")


def last_step(folder: Path) -> dict[str, Any]:
    """As a training run does, take SIGTERM as a wish: finish the step, then end."""
    asked: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    try:
        note("", folder)
        while not asked:
            time.sleep(0.05)
    finally:
        signal.signal(signal.SIGTERM, before)
    (folder / "saved").touch()
    raise RuntimeError("a signal ended it")


def hang(folder: Path) -> dict[str, Any]:
    """Say who is working, then never end."""
    (folder / "process").write_text(str(os.getpid()))
    time.sleep(600)
    return {}
