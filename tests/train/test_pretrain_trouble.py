"""Broken samples, full and read-only disks: counted or one clear line, and the last checkpoint stays whole."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from test_pretrain import config_of

from kosmos_train import train
from kosmos_train.checkpoint import find_latest
from kosmos_train.runs import read_metrics


def spoil(values: dict[str, Any], root: Path, broken: int) -> None:
    """A corpus of pairs of which so many have a truncated picture takes the place of the good one."""
    from kosmos_data import Document, Image, Text, write_shards

    documents = [
        Document(
            f"p{index}", [Image(tiny.picture("red")[: 40 if index < broken else None]), Text("An image of a red fish")]
        )
        for index in range(160)
    ]
    write_shards(root, documents, max_documents=20)
    values["data"]["sources"][1]["shards"] = str(root)


def test_bad_samples_are_counted_or_stop_the_run(values: dict[str, Any], tmp_path: Path) -> None:
    """A few truncated pictures: skipped and counted by reason; half of them: the run stops and says what and where."""
    spoil(values, tmp_path / "few", 20)
    values["data"]["max_bad_rate"] = 0.5
    train(config_of(values), tmp_path / "a")
    counted = [row["bad_samples"] for row in read_metrics(tmp_path / "a") if "bad_samples" in row]
    assert counted
    assert all(reasons.keys() == {"image broken"} for reasons in counted)
    spoil(values, tmp_path / "many", 120)
    values["data"]["max_bad_rate"] = 0.01
    with pytest.raises(ValueError, match="image broken"):
        train(config_of(values | {"steps": 100}), tmp_path / "b")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for one checkpoint and a half."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1100k", "none", str(folder)], check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_disk_that_fills_up(values: dict[str, Any], small_disk: Path, tmp_path: Path) -> None:
    """The second checkpoint does not fit: a clear error, the first stays whole, the run goes on where there is room."""
    values["checkpoint"] = {"every": 4, "keep": 2}
    with pytest.raises(
        OSError, match=r"could not write checkpoint .*No space left.*the last whole one is .*step-000004"
    ):
        train(config_of(values), small_disk / "run")
    assert [path.name for path in (small_disk / "run" / "checkpoints").iterdir() if path.is_dir()] == ["step-000004"]
    shutil.copytree(small_disk / "run", tmp_path / "run")
    assert train(config_of(values), tmp_path / "run", resume=True).step == 12


def test_run_folder_that_becomes_read_only(values: dict[str, Any], small_disk: Path) -> None:
    """An error that names the file, before anything is computed; the last checkpoint stays whole."""
    values |= {"steps": 4, "optim": {"warmup": 0}}
    train(config_of(values), small_disk / "run")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OSError, match=r"Read-only file system: .*/run/"):
        train(config_of(values), small_disk / "run", resume=True)
    latest = find_latest(small_disk / "run" / "checkpoints")
    assert latest is not None
    assert latest.name == "step-000004"
