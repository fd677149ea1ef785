"""Batches made ready by a thread change no number, also where a run goes on behind its checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jobs
from forks import launch

from .test_gradients import both_encoders


def losses(run: Path) -> list[tuple[int, float, str]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"], row["order"]) for row in rows]


def test_a_resumed_run_with_workers_is_the_same(values: dict[str, Any], tmp_path: Path) -> None:
    """Of workers a batch more is read than trained on; it is read again after a resumption."""
    values["optim"] |= {"schedule": "constant", "warmup": 2}
    jobs.run({**values, "steps": 5}, str(tmp_path / "plain"))
    values["data"]["workers"] = 1
    jobs.run({**values, "steps": 3}, str(tmp_path / "ahead"))
    jobs.run({**values, "steps": 5}, str(tmp_path / "ahead"), resume=True)
    assert losses(tmp_path / "ahead") == losses(tmp_path / "plain")


def test_a_loader_process_a_rank_feeds_both_encoders(values: dict[str, Any], tmp_path: Path) -> None:
    """Two ranks under ZeRO-2, a ViT and a text encoder, packed rows, resumed: as the ranks that read for themselves."""
    values = both_encoders(values, 1, rows_per_step=8) | {"engine": {"zero_stage": 2}}
    values["optim"] |= {"schedule": "constant", "warmup": 2}
    values["data"]["sources"][0]["objective"] = {"name": "semi_causal", "min_length": 4, "max_length": 8}
    ahead = {**values, "data": values["data"] | {"workers": 1}}
    launch(tmp_path / "j0", 2, jobs.run, {**values, "steps": 5}, str(tmp_path / "plain")).results()
    launch(tmp_path / "j1", 2, jobs.run, {**ahead, "steps": 3}, str(tmp_path / "ahead")).results()
    launch(tmp_path / "j2", 2, jobs.run, {**ahead, "steps": 5}, str(tmp_path / "ahead"), True).results()
    assert losses(tmp_path / "ahead") == losses(tmp_path / "plain")
    rows = [json.loads(line) for line in (tmp_path / "ahead" / "metrics.jsonl").read_text().splitlines()]
    assert min(sum(row[kind] for row in rows) for kind in ("images", "span_tokens")) > 0
