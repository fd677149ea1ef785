"""Copies of checkpoints through fsspec: whole ones only, and a bucket that fails never costs a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pytest

from kosmos import settings
from kosmos_train import TrainConfig, train
from kosmos_train.runs import read_metrics
from kosmos_train.upload import MANIFEST, Uploader


def config_of(values: dict[str, Any], url: str) -> TrainConfig:
    return settings.from_dict(TrainConfig, values | {"checkpoint": {"every": 4, "keep": 1, "upload": url}})


def test_every_checkpoint_arrives_whole(values: dict[str, Any], tmp_path: Path) -> None:
    """Three checkpoints in the bucket, byte for byte, though only the newest is kept locally."""
    bucket = fsspec.filesystem("memory")
    train(config_of(values, "memory://bucket/run"), tmp_path / "run")
    names = {path.removeprefix("/bucket/run/").split("/")[0] for path in bucket.find("/bucket/run")}
    assert names == {"step-000004", "step-000008", "step-000012", "latest"}
    assert bucket.cat_file("/bucket/run/latest") == b"step-000012\n"
    local = tmp_path / "run" / "checkpoints" / "step-000012"
    assert "12 steps, from random weights" in bucket.cat_file("/bucket/run/step-000012/README.md").decode()
    for path in (path for path in local.rglob("*") if path.is_file()):
        assert bucket.cat_file(f"/bucket/run/step-000012/{path.relative_to(local)}") == path.read_bytes()


def test_bucket_that_cannot_be_reached(values: dict[str, Any], tmp_path: Path) -> None:
    """Before the first step, with the URL in the message."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"checkpoint.upload=.*/file/run cannot be written"):
        train(config_of(values, f"file://{tmp_path}/file/run"), tmp_path / "a")
    with pytest.raises(ValueError, match=r"checkpoint.upload=nosuch://x: Protocol not known"):
        train(config_of(values, "nosuch://x"), tmp_path / "b")


def test_bucket_that_fails_later(values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training reaches its end with whole local checkpoints; the failed copy has no manifest; the run ends in error."""
    bucket = fsspec.filesystem("memory")
    original = Uploader._put

    def fail_late(self: Uploader, local: Path, remote: str) -> None:
        if "step-000012" in remote and local.suffix == ".safetensors":
            raise ConnectionError("the bucket is gone")
        original(self, local, remote)

    monkeypatch.setattr(Uploader, "_put", fail_late)
    with pytest.raises(OSError, match="the bucket is gone; the local checkpoints are whole"):
        train(config_of(values, "memory://late/run"), tmp_path / "run")
    assert len(read_metrics(tmp_path / "run")) == 12
    assert bucket.cat_file("/late/run/latest") == b"step-000008\n"
    assert not bucket.exists(f"/late/run/step-000012/{MANIFEST}")
    assert (tmp_path / "run" / "checkpoints" / "step-000012" / MANIFEST).is_file()
