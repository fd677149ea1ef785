"""Ranks whose machines do not fit together hear of it at the start, all of them."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from forks import launch


def check_with(versions: list[str]) -> str:
    """Look at the machines, this rank with its own version of torch."""
    from kosmos_train.distributed import check_machines, start

    world = start(2.0)
    torch.__version__ = versions[int(os.environ["RANK"])]
    try:
        check_machines(world, "bf16")
    except ValueError as error:
        return str(error)
    return "no error"


def test_another_torch_is_refused_by_all(tmp_path: Path) -> None:
    said = launch(tmp_path / "j", 2, check_with, ["2.14.1", "2.11.0"]).results()
    assert said[0] == said[1]
    assert said[0].startswith("rank 1 on ")
    assert said[0].endswith("has torch 2.11.0 instead of 2.14.1, which rank 0 has: install the same everywhere")
