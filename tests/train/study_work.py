"""Work for the jobs of test_study.py, importable by name in a worker process."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any


def note(text: str, folder: Path) -> dict[str, Any]:
    """Say when it ran and in which process; fail on request."""
    began = time.time()
    if text == "fail":
        raise ValueError("asked to")
    (folder / "metrics.jsonl").write_text("{}\n")
    time.sleep(0.3)
    return {"text": text, "process": os.getpid(), "began": began, "ended": time.time()}


def last_step(folder: Path) -> dict[str, Any]:
    """As a training run does, take SIGTERM as a wish: finish the step, then end."""
    asked: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    try:
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
