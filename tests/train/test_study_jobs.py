"""Jobs of a study: beside each other, in the order that they need, and gone with their study."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from study_work import fail, last_step, meet, note

from kosmos_train.study.jobs import Job, do_all


def test_jobs_run_beside_each_other_and_end_with_their_study(tmp_path: Path) -> None:
    """Two at a time, in the order that they need; a failure is named, what is done stays; no orphan after a kill."""

    def job(name: str, text: str, *after: str, work: Callable[..., Any] = note) -> Job:
        return Job(name, partial(work, text), tmp_path / name, {"text": text}, 1, 1.0, after)

    console = Console(file=(tmp_path / "shown").open("w"))
    long = Job("e", last_step, tmp_path / "e", {}, 1, 1.0, ("c",))
    jobs = [job("a", "b", work=meet), job("b", "a", work=meet), job("c", "3", "a", "b")]
    jobs += [long, job("d", "e", "c", work=fail)]
    with pytest.raises(ValueError, match="d: ValueError: asked to"):
        do_all(jobs, 2, console)
    assert (tmp_path / "e" / "saved").is_file()
    made = do_all(jobs[:3], 2, console)
    assert made["a"]["process"] != made["b"]["process"]  # a and b end only when both have begun
    assert made["c"]["began"] > max(made["a"]["ended"], made["b"]["ended"])
    with pytest.raises(ValueError, match=r"made with other settings \(text\)"):
        do_all([job("a", "9")], 1, console)

    program = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from functools import partial; from pathlib import Path\n"
        "from rich.console import Console; from study_work import hang\n"
        "from kosmos_train.study.jobs import Job, do_all\n"
        "if __name__ == '__main__':\n"
        f"    do_all([Job('h', hang, Path({str(tmp_path / 'h')!r}), {{}}, 1, 1.0)], 2, Console())\n"
    )
    (tmp_path / "main.py").write_text(program)
    parent = subprocess.Popen([sys.executable, tmp_path / "main.py"], stdout=subprocess.DEVNULL)
    marker = tmp_path / "h" / "process"
    _until(lambda: marker.is_file() and marker.read_text(), 400)  # interpreters start, on a machine that may be busy
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _until(lambda: not _alive(int(marker.read_text())))


def _until(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain"
        time.sleep(0.1)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return b"zombie" not in Path(f"/proc/{process}/status").read_bytes()
