"""Guards: what is skipped, rewound or stopped, and that a hang ends with the stacks of its threads."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Container
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from forks import launch
from hypothesis import given
from hypothesis import strategies as st

from kosmos import settings
from kosmos_train import TrainConfig, train
from kosmos_train.config import GuardConfig
from kosmos_train.corpora import joint_order, order_votes
from kosmos_train.guards import MIN_HISTORY, SpikeGuard, TrainingStoppedError
from kosmos_train.runs import read_metrics


def test_spike_guard_judges_by_the_median() -> None:
    """Finite values pass until there is a history of taken steps; then a multiple of its median is a spike."""
    guard = SpikeGuard(GuardConfig(spike=3.0, window=32))
    assert guard.judge_loss(1e9) is None
    assert "nan" in str(guard.judge_loss(math.nan))
    assert "inf" in str(guard.judge_norm(math.inf))
    for _ in range(MIN_HISTORY):
        guard.record(2.0, 1.0, None)
    for _ in range(5):
        guard.record(1e9, 1e9, "skipped")
    assert guard.skipped_in_row == 5
    assert guard.judge_loss(5.9) is None
    assert "over 3 x the median 2" in str(guard.judge_loss(6.1))
    other = SpikeGuard(GuardConfig(spike=3.0, window=32))
    other.load(json.loads(json.dumps(guard.state())))
    assert other.state() == guard.state()
    guard.record(2.0, 1.0, None)
    assert guard.skipped_in_row == 0


def break_batches(monkeypatch: pytest.MonkeyPatch, broken: Container[int]) -> list[int]:
    """From now on these batches of any run have a poisoned weight; returns the list of batches read."""
    from kosmos_data.loader import Loader

    original, seen = Loader.__next__, []

    def poisoned(loader: Any) -> Any:
        batch = original(loader)
        seen.append(batch.step)
        if batch.step in broken:
            weight = batch.micro_batches[0]["loss_weight"]
            weight[tuple(weight.nonzero()[0])] = math.nan
        return batch

    monkeypatch.setattr(Loader, "__next__", poisoned)
    return seen


def test_bad_batches_are_skipped_and_named(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two NaN batches: two skipped updates with reason and data hash in metrics.jsonl, and training goes on."""
    break_batches(monkeypatch, (5, 6))
    train(settings.from_dict(TrainConfig, values), tmp_path / "run")
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows if "skipped" in row] == [6, 7]
    assert all("nan" in row["skipped"] and len(row["order"]) == 16 for row in rows[5:7])
    assert [row["batch"] for row in rows[5:7]] == [5, 6]  # what data.skip_steps and `kosmos data replay` call them
    assert math.isfinite(rows[-1]["loss"])


def test_rewind_goes_on_behind_the_bad_batches(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three bad batches in a row: back to the checkpoint of step 4, every batch is still read exactly once."""
    seen = break_batches(monkeypatch, (5, 6, 7))
    values["guard"] = {"max_skipped": 3, "on_trouble": "rewind"}
    values["model"]["overrides"] = {"text_config": {"dropout": 0.0}}
    outcome = train(settings.from_dict(TrainConfig, values), tmp_path / "run")
    assert outcome.step == 12
    assert seen == list(range(16))  # 12 steps and the 4 that were thrown away
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert rows[4]["rewound_from"] == 8
    # The weights are those of step 4: the same as a run that never saw the batches in between.
    values["data"]["skip_steps"] = [4, 5, 6, 7]
    monkeypatch.undo()
    train(settings.from_dict(TrainConfig, values), tmp_path / "other")
    expected = [row["loss"] for row in read_metrics(tmp_path / "other")]
    assert [row["loss"] for row in rows] == pytest.approx(expected, abs=1e-6)


def test_rewinds_are_counted_between_checkpoints(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four rewinds far from each other do not end a long run."""
    break_batches(monkeypatch, (3, 8, 13, 18))
    values |= {"checkpoint": {"every": 2}, "guard": {"max_skipped": 1, "on_trouble": "rewind"}}
    assert train(settings.from_dict(TrainConfig, values), tmp_path / "run").finished


def test_trouble_without_end_stops(values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After three rewinds to the same checkpoint."""
    break_batches(monkeypatch, range(5, 10_000))
    values["guard"] = {"max_skipped": 3, "on_trouble": "rewind"}
    with pytest.raises(TrainingStoppedError, match=r"3 updates skipped in a row .*step-000004"):
        train(settings.from_dict(TrainConfig, values), tmp_path / "run")


def hang(values: dict[str, Any], run_dir: str) -> None:
    """Rank 1 never gets its third batch; rank 0 waits for it in a collective."""
    from kosmos_data.loader import Loader

    original = Loader.__next__

    def a_read_that_hangs(loader: Any) -> Any:
        while os.environ["RANK"] == "1" and loader.step == 2:
            time.sleep(1)
        return original(loader)

    Loader.__next__ = a_read_that_hangs
    jobs.run(values, run_dir)


def test_a_hang_ends_with_the_stacks_of_all_ranks(values: dict[str, Any], tmp_path: Path) -> None:
    """All ranks are gone soon after, and their files say where each stood."""
    values["guard"] = {"hang_minutes": 0.15}
    assert launch(tmp_path / "j", 2, hang, values, str(tmp_path / "run")).wait() == [1, 1]
    waiting, hanging = ((tmp_path / "run" / f"stacks-rank{rank}.txt").read_text() for rank in range(2))
    assert "all_reduce" in waiting
    assert "a_read_that_hangs" in hanging


def lonely_error(values: dict[str, Any], run_dir: str) -> str:
    """Only rank 1's corpus is missing."""
    if os.environ["RANK"] == "1":
        values["data"]["sources"][0]["shards"] = "/nowhere"
    try:
        jobs.run(values, run_dir)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def test_one_rank_alone_stops_all(values: dict[str, Any], tmp_path: Path) -> None:
    """An error on one rank is an error on all, at once, and each says whose it was."""
    first, second = launch(tmp_path / "j", 2, lonely_error, values, str(tmp_path / "run")).results()
    assert first == "OSError: rank 1 failed opening the corpora: /nowhere: no such folder of shards"
    assert second == "FileNotFoundError: /nowhere: no such folder of shards"


def lonely_bad_data(values: dict[str, Any], run_dir: str) -> str:
    """Rank 1's loader gives up in the middle of the run."""
    from kosmos_data.loader import Loader

    original = Loader.__next__

    def fail(loader: Any) -> Any:
        batch = original(loader)
        if os.environ["RANK"] == "1" and batch.step == 5:
            raise ConnectionResetError("the store is gone")
        return batch

    Loader.__next__ = fail
    try:
        jobs.run(values, run_dir)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def test_bad_data_on_one_rank_stops_all(values: dict[str, Any], tmp_path: Path) -> None:
    """In the middle of a run, too, every rank says what was wrong and where; none waits for the others' timeout,
    which is longer than ``results()`` waits."""
    first, second = launch(tmp_path / "j", 2, lonely_bad_data, values, str(tmp_path / "run")).results()
    assert first == "OSError: rank 1 failed reading its data: the store is gone"  # OSError: one line at the terminal
    assert second == "ConnectionResetError: the store is gone"
    assert len(read_metrics(tmp_path / "run")) == 5


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8))
def test_order_hashes_join_by_xor(hashes: list[int]) -> None:
    """The sum of the votes over ranks gives the XOR of the ranks' hashes."""
    total = dict.fromkeys(order_votes("0"), 0.0)
    expected = 0
    for number in hashes:
        expected ^= number
        for name, vote in order_votes(f"{number:016x}").items():
            total[name] += vote
    assert joint_order(total) == f"{expected:016x}"


def test_learning_rate_follows_the_paper() -> None:
    """Warm-up over 375 updates to 2e-4, then linear to zero just behind the last one; cosine and constant alike."""
    from kosmos_train.config import OptimConfig
    from kosmos_train.optim import learning_rate

    config = OptimConfig()
    rates = torch.tensor([learning_rate(step, config, 3000) for step in range(1, 3001)])
    assert rates[0] == pytest.approx(2e-4 / 375)
    assert rates[374] == rates[375] == rates.max() == pytest.approx(2e-4)
    assert torch.allclose(rates[375:].diff(), torch.tensor(-2e-4 / 2625), atol=1e-9)
    assert 0 < rates[-1] < 1e-7
    cosine = OptimConfig(schedule="cosine", final_ratio=0.1)
    assert learning_rate(376 + 1312, cosine, 3000) == pytest.approx(2e-4 * 0.55, rel=1e-2)
    assert learning_rate(3001, cosine, 3000) == pytest.approx(2e-5)
    assert learning_rate(2000, OptimConfig(schedule="constant"), 3000) == 2e-4
    stable = OptimConfig(schedule="wsd", decay_share=0.1)
    assert learning_rate(400, stable, 3000) == learning_rate(2701, stable, 3000) == 2e-4
    assert learning_rate(2701 + 150, stable, 3000) == pytest.approx(1e-4)
    assert 0 < learning_rate(3000, stable, 3000) < 1e-6
    root = OptimConfig(schedule="inverse_sqrt", warmup=100)
    assert learning_rate(100, root, 3000) == learning_rate(400, root, 3000) * 2 == pytest.approx(2e-4)
