"""Killed at any point and started again, a run ends with the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kosmos_data.shards import ShardWriter
from kosmos_data.web import stages
from kosmos_data.web.ledger import Ledger
from kosmos_data.web.options import WebOptions
from kosmos_data.web.pipeline import run

pytest.importorskip("fastwarc")
pytest.importorskip("datatrove")

from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets

from ..killing import KillAt

MakeOptions = Callable[..., WebOptions]
Files = Callable[[Path], dict[str, bytes]]


KILLS = [
    KillAt(ShardWriter, "write", 4),  # in the middle of a WARC file
    KillAt(stages._Manifest, "write"),  # documents written, manifest not
    KillAt(PipelineExecutor, "mark_rank_as_completed", 2),  # all written, the mark not
    KillAt(MinhashDedupBuckets, "get_worker_hash_range", 5),
    KillAt(stages, "select"),
    KillAt(Ledger, "write"),
    KillAt(ShardWriter, "write", 9),  # in the second shard
    KillAt(Path, "replace", 4),  # offsets moved, their tar not
    KillAt(stages, "write_index"),
    KillAt(stages.shutil, "rmtree"),  # everything written, not cleaned up
]


def test_killed_at_every_stage_and_started_again(
    web: Any, made: Path, tmp_path: Path, options: MakeOptions, files: Files
) -> None:
    out = tmp_path / "out"
    for kill in KILLS:
        kill.during(run, web.warcs, out, options(3, workers=1))
    run(web.warcs, out, options(3, workers=1))
    assert files(out) == files(made)
    assert not list(out.glob("*.partial"))


def _children(pid: int) -> set[int]:
    """All processes below ``pid``."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):  # it has ended since it was listed
            continue
    found: set[int] = set()
    while more := {child for child, parent in parents.items() if parent in found | {pid}} - found:
        found |= more
    return found


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _wait(what: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.005)
    raise AssertionError("it did not happen")


@pytest.fixture
def started(web: Any, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command with two workers, in a process of its own."""
    command = [sys.executable, "-m", "kosmos.cli", "data", "web", *map(str, web.warcs), "--out", str(tmp_path / "out")]
    process = subprocess.Popen([*command, "documents_per_shard=6", "execution.workers=2"], stderr=subprocess.DEVNULL)
    yield process
    process.kill()
    process.wait()


def test_a_killed_worker_is_replaced_and_workers_end_with_a_killed_run(
    web: Any, made: Path, tmp_path: Path, started: subprocess.Popen[bytes], options: MakeOptions, files: Files
) -> None:
    work = tmp_path / "out" / "work"
    _wait(lambda: list((work / "documents").glob("*.partial/*.tar.partial")), 400)  # a task is being extracted
    children = _children(started.pid)
    workers = children - {pid for pid in children if _children(pid)}  # not the fork server, which is their parent
    os.kill(max(workers), signal.SIGKILL)
    done = work / "logs" / "2-extract" / "completions"
    _wait(lambda: started.poll() is not None or len(list(done.glob("*"))) == 3, 400)
    children |= _children(started.pid)
    started.kill()
    assert started.wait() == -signal.SIGKILL, "it ended before it was killed"
    _wait(lambda: not any(map(_alive, children)), 20)
    run(web.warcs, tmp_path / "out", options(workers=1))
    assert files(tmp_path / "out") == files(made)
