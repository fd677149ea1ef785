"""Checkpoints that a thread writes: training goes on meanwhile, and what goes wrong is everyone's, at the next step."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import jobs
from forks import launch
from safetensors.torch import load_file

from kosmos import settings
from kosmos_train import TrainConfig, checkpoint, saving
from kosmos_train.runs import read_metrics

SLOW_STEPS = 3


def hold_until_trained(run_dir: str, step: int, fail_on: str) -> None:
    """Let the writing of the checkpoint of a step last until three more are logged; then perhaps fail a rank."""
    original = saving.save_file

    def slow(tensors: Any, path: Path) -> None:
        if checkpoint.step_name(step) in str(path):
            assert threading.current_thread() is not threading.main_thread()
            while len(read_metrics(Path(run_dir))) < step + SLOW_STEPS:
                time.sleep(0.01)
            if os.environ["RANK"] == fail_on:
                raise OSError(28, "No space left on device")
        original(tensors, path)

    saving.save_file = slow


def run_slowly(values: dict[str, Any], run_dir: str, step: int, fail_on: str = "") -> str:
    """Train with a disk that is slow at one checkpoint; what it ended with."""
    hold_until_trained(run_dir, step, fail_on)
    try:
        jobs.run(values, run_dir)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def optimizer_files(run: Path, step: int) -> dict[str, Any]:
    folder = run / "checkpoints" / checkpoint.step_name(step) / "trainer"
    return {path.name: load_file(path) for path in folder.glob("optimizer-*.safetensors")}


def test_training_goes_on_while_a_checkpoint_is_written(values: dict[str, Any], tmp_path: Path) -> None:
    """Two ranks, ZeRO-2, dropout: three steps pass before the files are written, yet they hold the state of their
    step, the losses are those of a quick disk, and a run resumed from them gives these losses too."""
    values |= {"checkpoint": {"every": 4, "keep": 3}, "engine": {"zero_stage": 2}, "log": {"every": 1}}
    slow, quick = tmp_path / "slow", tmp_path / "quick"
    said = launch(tmp_path / "j1", 2, run_slowly, values, str(slow), 4).results()
    assert said == ["no error"] * 2
    launch(tmp_path / "j2", 2, jobs.run, values, str(quick)).results()
    expected = [row["loss"] for row in read_metrics(quick)]
    assert [row["loss"] for row in read_metrics(slow)] == expected
    for name, tensors in optimizer_files(quick, 4).items():
        found = optimizer_files(slow, 4)[name]
        assert tensors.keys() == found.keys()
        assert all(bool((tensors[key] == found[key]).all()) for key in tensors)
    for late in (8, 12):
        (slow / "checkpoints" / checkpoint.step_name(late)).rename(tmp_path / f"late{late}")
    launch(tmp_path / "j3", 2, jobs.run, values, str(slow), True).results()
    assert [row["loss"] for row in read_metrics(slow)] == expected


def test_a_rank_that_cannot_write_stops_all_at_the_next_step(values: dict[str, Any], tmp_path: Path) -> None:
    """The disk of rank 1 is full, found by its thread while training goes on: both ranks end, nothing half is left."""
    values |= {"steps": 40, "checkpoint": {"every": 8, "keep": 3}, "engine": {"zero_stage": 1}}
    run = tmp_path / "run"
    first, second = launch(tmp_path / "j", 2, run_slowly, values, str(run), 16, "1").results()
    half, whole = (run / "checkpoints" / checkpoint.step_name(step) for step in (16, 8))
    fault = f"could not write checkpoint {half}: [Errno 28] No space left on device; the last whole one is {whole}"
    assert second == f"OSError: {fault}"
    assert first == f"OSError: rank 1 failed writing {half}: {fault}"
    assert sorted(path.name for path in half.parent.iterdir()) == ["latest", whole.name]
    assert len(read_metrics(run)) < 24, "only the next checkpoint noticed"


def stop_in_between(values: dict[str, Any], run_dir: str) -> str:
    """The loader of both ranks fails in the step after a checkpoint was begun."""
    from kosmos_data.loader import Loader

    original = Loader.__next__

    def fail(loader: Any) -> Any:
        batch = original(loader)
        if batch.step == 4:
            raise ConnectionResetError("the store is gone")
        return batch

    Loader.__next__ = fail
    try:
        jobs.run(values, run_dir)
    except ConnectionResetError as error:
        return str(error)
    return "no error"


def test_an_error_in_between_costs_no_checkpoint(values: dict[str, Any], tmp_path: Path) -> None:
    """Training stops while two ranks write: they finish it first."""
    values |= {"checkpoint": {"every": 4}, "engine": {"zero_stage": 1}}
    said = launch(tmp_path / "j", 2, stop_in_between, values, str(tmp_path / "run")).results()
    assert said == ["the store is gone"] * 2
    latest = checkpoint.find_latest(tmp_path / "run" / "checkpoints")
    assert latest is not None
    assert latest.name == "step-000004"
    assert checkpoint.read_state(latest)["step"] == 4
    assert settings.load(TrainConfig, tmp_path / "run" / "config.yaml").checkpoint.every == 4
