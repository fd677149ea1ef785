"""Real processes: killed with SIGKILL and started again, as two ranks like torchrun's; the same results.json."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from kosmos.cli import main

from .. import warm_libraries

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


@pytest.fixture
def start(checkpoint: Path, toy_data: Path, tmp_path: Path) -> Callable[..., BaseProcess]:
    """Start an evaluation as a process; what it says is in ``rank0`` or ``rank1``."""

    def begin(code: str, **environment: str) -> BaseProcess:
        folder = tmp_path / f"rank{environment.get('RANK', 0)}"
        folder.mkdir(exist_ok=True)
        variables = os.environ | {"OMP_NUM_THREADS": "1"} | environment
        words = arguments(checkpoint, toy_data, tmp_path / "out")
        return warm_libraries.start(["-c", code, *words], folder, variables)

    return begin


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
    tmp_path: Path, expected: list[Any], start: Callable[..., BaseProcess]
) -> None:
    """The first run is cut short by the kill; two ranks finish it and do the other three between them."""
    process, out = start(SLOW), tmp_path / "out"
    part = out / "samples/toy/easy_vqa-0shot-image+text.part-0.jsonl"
    deadline = time.monotonic() + 240
    while not (part.is_file() and part.stat().st_size > 0) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.join(30)
    assert 0 < len(part.read_text().splitlines()) < 24
    assert not (out / "results.json").exists()
    ranks = [start(PLAIN, RANK=str(index), LOCAL_RANK=str(index), WORLD_SIZE="2") for index in range(2)]
    for rank in ranks:
        rank.join(400)
    codes = [rank.exitcode for rank in ranks]
    said = [[(tmp_path / f"rank{index}" / name).read_text() for name in ("stdout", "stderr")] for index in range(2)]
    logs = ["".join(texts)[-3000:] for texts in said]
    assert codes == [0, 0], logs
    assert "answers taken over" in logs[0]
    assert rows(out) == expected
    assert expected[0]["n"] == 24
    assert len(list((out / "samples/toy").iterdir())) == 4
