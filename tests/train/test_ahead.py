"""Batches made ready by a thread change no number, also where a run goes on behind its checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jobs


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
