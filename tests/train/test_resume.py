"""Runs that are killed, preempted or moved go on as if nothing had happened."""

from __future__ import annotations

import json
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jobs
import pytest
from forks import LONGEST, Job, launch

from kosmos_train import checkpoint
from kosmos_train.log import cut_after
from kosmos_train.runs import read_metrics

# (kills, seed) of the runs that are killed side by side, by number of processes.
TRIALS = {1: [(10, 1), (10, 3)], 2: [(10, 2)]}
PATIENCE = 60.0
"""Seconds in which the ranks that a killed one has left behind must leave, too."""


def settings_for(values: dict[str, Any]) -> dict[str, Any]:
    """A run of 30 short steps with dropout, a checkpoint every second one.

    The timeout lies below ``PATIENCE`` and far above the slowest step, so that a busy machine is not taken for a hang.
    """
    values = values | {"steps": 30, "checkpoint": {"every": 2, "keep": 2}, "engine": {"timeout_minutes": 0.5}}
    return values | {"data": values["data"] | {"rows_per_step": 4}}


def losses(run: Path) -> dict[int, float]:
    """Loss of each step; every step stands there exactly once, in order."""
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return {row["step"]: row["loss"] for row in rows}


def wait_for_moment(job: Job, run: Path, draw: random.Random) -> None:
    """Return at a random moment: in half of the cases while a checkpoint is being written.

    The half checkpoint that an earlier kill has left does not count: the ranks have not even started yet.
    """
    in_checkpoint, deadline = draw.random() < 0.5, time.monotonic() + PATIENCE
    left = half_checkpoints(run)
    target = len(read_lines(run)) + draw.randrange(1, 6)
    while job.alive() and time.monotonic() < deadline:
        if in_checkpoint and half_checkpoints(run) - left:
            time.sleep(draw.uniform(0, 0.05))
            return
        if not in_checkpoint and len(read_lines(run)) >= target:
            time.sleep(draw.uniform(0, 0.1))
            return
        time.sleep(0.002)


def half_checkpoints(run: Path) -> set[Path]:
    return set((run / "checkpoints").glob(".step-*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_killed_at_random_moments(values: dict[str, Any], tmp_path: Path, size: int) -> None:
    """kill -9 of any rank, also during a checkpoint: the others leave soon, and the resumed losses are the same."""
    values = settings_for(values)
    launch(tmp_path / "j", size, jobs.run, values, str(tmp_path / "straight")).results()
    expected, trials = losses(tmp_path / "straight"), TRIALS[size]
    with ThreadPoolExecutor(len(trials)) as pool:
        lanes = [
            pool.submit(kill_and_resume, values, tmp_path / f"lane{lane}", size, kills, expected, random.Random(seed))
            for lane, (kills, seed) in enumerate(trials)
        ]
        for lane in lanes:
            lane.result()


def kill_and_resume(
    values: dict[str, Any], folder: Path, size: int, trials: int, expected: dict[int, float], draw: random.Random
) -> None:
    """Start, kill, resume until so many kills have hit, and to the end; a run that ends too early is begun anew."""
    run, kills, finished = folder / "run", 0, False
    while not finished:
        job, last = launch(folder / f"j{kills}", size, jobs.run, values, str(run), True), kills == trials
        if not last:
            wait_for_moment(job, run, draw)
            kills += job.alive()
            job.kill(draw.randrange(size))
        began, patience = time.monotonic(), LONGEST if last else PATIENCE
        codes = job.wait(patience)
        left = time.monotonic() - began < patience
        assert left, "the ranks left behind did not leave:\n" + "\n".join(job.output(rank) for rank in range(size))
        finished = codes == [0] * size
        for whole in (run / "checkpoints").glob("step-*"):
            assert checkpoint.is_complete(whole), "a half checkpoint under a final name"
        if finished:
            compare(losses(run), expected)
            if kills < trials:
                run, finished = folder / f"run{kills}", False


def compare(found: dict[int, float], expected: dict[int, float]) -> None:
    assert found.keys() == expected.keys()
    for step, loss in expected.items():
        assert found[step] == pytest.approx(loss, abs=1e-6), f"step {step}"


@pytest.mark.slow
def test_two_one_four_processes(values: dict[str, Any], tmp_path: Path) -> None:
    """SIGTERM, then another number of processes and another ZeRO stage: same data, losses within 1e-4."""
    values = settings_for(values) | {"checkpoint": {"every": 100}, "data": values["data"]}
    values["model"]["overrides"] = {"text_config": {"dropout": 0.0}}
    launch(tmp_path / "s", 1, jobs.run, values, str(tmp_path / "straight")).results()
    expected = {row["step"]: row for row in read_metrics(tmp_path / "straight")}
    run = tmp_path / "run"
    for index, (size, stage) in enumerate([(2, 1), (1, 2), (4, 1)]):
        job = launch(tmp_path / f"j{index}", size, jobs.run, values | {"engine": {"zero_stage": stage}}, str(run), True)
        if size < 4:
            lines = 8 * (index + 1)
            while len(read_lines(run)) < lines and job.alive():
                time.sleep(0.005)
            job.signal(size - 1, signal.SIGTERM if index else signal.SIGUSR1)  # one rank alone hears it
        results = job.results()
        assert {result["finished"] for result in results} == {size == 4}
        assert len({result["step"] for result in results}) == 1
    found = {row["step"]: row for row in read_metrics(run)}
    assert found.keys() == expected.keys()
    for step, row in expected.items():
        assert found[step]["order"] == row["order"]
        assert found[step]["tokens"] == row["tokens"]
        assert found[step]["loss"] == pytest.approx(row["loss"], abs=1e-4)
    launches = json.loads((run / "environment.json").read_text())
    assert [launch["processes"] for launch in launches] == [2, 1, 4]


def read_lines(run: Path) -> list[str]:
    path = run / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def test_metrics_are_cut_at_the_checkpoint(tmp_path: Path) -> None:
    """Rows behind the checkpoint and a last line cut by a kill disappear; tokens go on from the last kept row."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "tokens": 10}\n{"step": 2, "tokens": 20}\n{"step": 3, "tokens": 30}\n{"step": 4, "tok')
    assert cut_after(path, 2) == 20
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]
    assert cut_after(tmp_path / "none.jsonl", 5) == 0
