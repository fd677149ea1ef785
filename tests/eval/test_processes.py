"""Real processes: killed with SIGKILL and started again, as two ranks like torchrun's; the same results.json."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kosmos.cli import main

# A pause after every batch, so that the kill falls between the first and the last answer.
SLOW = """
import sys, time
from kosmos_eval.model import EvaluatedModel
from kosmos.cli import main
generate = EvaluatedModel.generate
def slow(self, *arguments):
    for batch in generate(self, *arguments):
        yield batch
        time.sleep(0.4)
EvaluatedModel.generate = slow
sys.exit(main(sys.argv[1:]))
"""


def arguments(checkpoint: Path, data: Path, out: Path) -> list[str]:
    where = ["eval", str(checkpoint), "--tasks", "easy_vqa", "--data", str(data), "--out", str(out)]
    return [*where, "--shots", "0,2", "--context", "image+text,shuffled", "--batch-size", "3"]


def start(code: str, checkpoint: Path, data: Path, out: Path, **environment: str) -> subprocess.Popen[bytes]:
    variables = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    log = (out.parent / f"{out.name}-{environment.get('RANK', 0)}.log").open("wb")
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments(checkpoint, data, out)], env=variables, stdout=log, stderr=log
    )


def rows(out: Path) -> list[Any]:
    """The result rows but for the commit, which may move on while the test runs in a checkout."""
    return [{key: value for key, value in row.items() if key != "commit"}
            for row in json.loads((out / "results.json").read_text())]  # fmt: skip


PLAIN = "import sys; from kosmos.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def expected(checkpoint: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    out = tmp_path_factory.mktemp("expected")
    assert main(arguments(checkpoint, toy_data, out)) == 0
    return rows(out)


@pytest.mark.slow
def test_killed_and_resumed_by_two_ranks_gives_the_file_of_one(
    checkpoint: Path, toy_data: Path, tmp_path: Path, expected: list[Any]
) -> None:
    """The first run is cut short by the kill; two ranks finish it and do the other three between them."""
    process = start(SLOW, checkpoint, toy_data, tmp_path)
    part = tmp_path / "samples/toy/easy_vqa-0shot-image+text.part-0.jsonl"
    deadline = time.monotonic() + 240
    while not (part.is_file() and part.stat().st_size > 0) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    assert 0 < len(part.read_text().splitlines()) < 24
    assert not (tmp_path / "results.json").exists()
    ranks = [
        start(PLAIN, checkpoint, toy_data, tmp_path, RANK=str(index), LOCAL_RANK=str(index), WORLD_SIZE="2")
        for index in range(2)
    ]
    codes = [rank.wait(timeout=400) for rank in ranks]
    logs = [(tmp_path.parent / f"{tmp_path.name}-{index}.log").read_text()[-3000:] for index in range(2)]
    assert codes == [0, 0], logs
    assert "answers taken over" in logs[0]
    assert rows(tmp_path) == expected
    assert expected[0]["n"] == 24
    assert len(list((tmp_path / "samples/toy").iterdir())) == 4
