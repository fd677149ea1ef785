"""Ranks whose machines do not fit together hear of it at the start, all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from forks import launch


def check_with(cases: list[list[dict[str, Any]]]) -> list[str]:
    """Look at the machines several times, this rank with its own versions, or with what its GPU lacks."""
    from kosmos_train import distributed

    world, said = distributed.start(2.0), []
    for mine in (case[world.rank] for case in cases):
        lacks: list[str] = mine.pop("lacks", [])
        distributed.versions = lambda device, mine=mine: mine
        distributed.lacking = lambda device, precision, lacks=lacks: lacks
        try:
            distributed.check_machines(world, "bf16")
            said.append("no error")
        except ValueError as error:
            said.append(str(error))
    return said


def test_machines_that_differ_are_refused_by_all(tmp_path: Path) -> None:
    """Another torch, another NCCL, a GPU without bf16 on one rank: one line, and every rank says it."""
    one = {"torch": "2.14.1", "NCCL": "2.29.3"}
    old = "old GPU has no bf16: engine.precision=fp32, or another GPU"
    others = [{**one}, {**one, "torch": "2.11.0"}, {**one, "NCCL": "2.27.5"}, {**one, "lacks": [old]}]
    first, second = launch(tmp_path / "j", 2, check_with, [[{**one}, other] for other in others]).results()
    assert first[0] == "no error"
    for said, name, found in ((first[1], "torch", "2.11.0"), (first[2], "NCCL", "2.27.5")):
        assert said.startswith("rank 1 on ")
        assert said.endswith(
            f"has {name} {found} instead of {one[name]}, which rank 0 has: install the same everywhere"
        )
    assert second[:3] == first[:3]
    assert first[3].startswith("rank 1 failed looking at its GPU: ")
    assert first[3].endswith(f": {old}")
    assert second[3] == first[3].removeprefix("rank 1 failed looking at its GPU: ")
    assert not any("\n" in line for line in first + second)
