"""kill -9 of a worker, and of the whole process, at random moments: nothing lost, nothing repeated.

A few kills in every run of the tests; ``KOSMOS_KILLS=25 pytest -o timeout=3000
tests/data/test_kill.py`` makes twenty-five of each.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from kosmos import settings
from kosmos.processing_kosmos import KosmosProcessor
from kosmos_data import DataConfig, build_loader

from .. import warm_libraries

KILLS = int(os.environ.get("KOSMOS_KILLS", "0"))
RUN = """
import json, os, sys
from pathlib import Path
from kosmos import settings
from kosmos.processing_kosmos import load_processor
from kosmos_data import DataConfig, build_loader

def main():
    folder = Path(sys.argv[1])
    state = json.loads((folder / "state.json").read_text()) if (folder / "state.json").exists() else None
    config = settings.load(DataConfig, folder / "data.yaml")
    loader = build_loader(config, load_processor(folder / "processor"), state=state)
    with open(folder / "log", "a") as log:
        for batch in loader:
            # One write of one line, then the state that belongs to it: what a training run does with its checkpoint.
            log.write(f"{batch.step} {batch.stats['order']}\\n"); log.flush()
            (folder / "state.partial").write_text(json.dumps(batch.state))
            os.replace(folder / "state.partial", folder / "state.json")

if __name__ == "__main__":
    main()
"""


def test_killed_workers_are_replaced(make_config: Callable[..., DataConfig], processor: KosmosProcessor) -> None:
    rng, loader, found, left = random.Random(0), build_loader(make_config(workers=2), processor), [], KILLS or 10
    while left:
        found.append(next(loader).stats["order"])
        alive = [process for process in loader._pool.processes if process.is_alive()]
        if alive and rng.random() < 0.3:
            time.sleep(rng.random() / 50)  # in the middle of a row, or of what it sends
            with contextlib.suppress(ProcessLookupError):  # the loader was faster to replace it
                os.kill(rng.choice(alive).pid, signal.SIGKILL)
                left -= 1
    found += [batch.stats["order"] for batch in islice(loader, 3)]
    loader.close()
    assert found == [batch.stats["order"] for batch in islice(build_loader(make_config(), processor), len(found))]


@pytest.mark.slow
def test_killed_process_resumes_exactly(
    tmp_path: Path, make_config: Callable[..., DataConfig], processor: KosmosProcessor
) -> None:
    """The trials alternate between no worker and two; workers must die with their parent."""
    processor.save_pretrained(tmp_path / "processor")
    rng = random.Random(1)
    trials = KILLS or 3
    for trial in range(trials):
        settings.write_yaml(make_config(workers=2 * (trial % 2)), tmp_path / "data.yaml")
        done = len(_lines(tmp_path))
        process = warm_libraries.start(["-c", RUN, str(tmp_path)], tmp_path, session=True)
        while len(_lines(tmp_path)) < done + 3:
            assert process.is_alive()
            time.sleep(0.02)
        time.sleep(rng.random() / 2)
        process.kill()
        process.join()
        _wait_until_gone(process.pid)
    lines = _lines(tmp_path)
    # A kill between log and state repeats that line; the state decides, as a checkpoint does in training.
    orders = dict(line.split() for line in lines)
    assert len(lines) - len(orders) <= trials
    whole = {str(b.step): b.stats["order"] for b in islice(build_loader(make_config(), processor), len(orders))}
    assert orders == whole
    assert json.loads((tmp_path / "state.json").read_text())["step"] >= len(orders) - 1


def _lines(folder: Path) -> list[str]:
    log = folder / "log"
    return log.read_text().splitlines() if log.exists() else []


def _wait_until_gone(session: int) -> None:
    """Workers and the fork server must end by themselves once the process that they work for is gone."""
    deadline = time.time() + 60
    while (
        str(session) in subprocess.run(["ps", "-eo", "sid="], capture_output=True, text=True, check=True).stdout.split()
    ):
        assert time.time() < deadline, "orphaned workers"
        time.sleep(0.1)
