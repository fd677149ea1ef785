"""The one call on a GPU (tests/benchmarks/gpu.py): right on a CPU here, and on a GPU where there is one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import gpu
import gpu_correct


def test_every_section_runs_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With tiny models: all comparisons within their tolerances, figures from every section, JSON at the end."""
    out = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--seconds", "50000", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["failed"] == found["skipped"] == []
    names = ["correct", "attention", "products", "block", "loss", "tower", "step", "run", "decoding"]
    assert list(found["sections"]) == names
    assert all(found["sections"].values())
    assert len(found["sections"]["correct"]) > 30
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["sections"] == found["sections"]


def test_what_is_wrong_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A comparison out of its tolerance, or a section that raises, ends the call with 1; the others go on."""
    bad = [gpu_correct.Check("loss", float("nan"), 1.0), gpu_correct.Check("gradient", 0.5, 1.0)]
    monkeypatch.setattr(gpu_correct, "everything", lambda device, compiled: iter(bad))
    monkeypatch.setattr(gpu.gpu_speed, "products", lambda size, device: 1 / 0)
    out = tmp_path / "gpu.json"
    words = ["--device", "cpu", "--out", str(out), "--only", "correct,products,loss"]
    assert gpu.main([*words, "--seconds", "50000"]) == 1
    found = json.loads(out.read_text())
    assert found["failed"] == ["loss: off by nan, more than 1", "products: ZeroDivisionError: division by zero"]
    assert found["sections"]["loss"]
    assert gpu.main([*words, "--seconds", "0.1"]) == 0
    assert json.loads(out.read_text())["skipped"] == ["correct", "products", "loss"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_equals_the_cpu() -> None:
    """Every way of attending, position type and precision, compiled or not, recomputed or not."""
    off = [check for check in gpu_correct.everything(torch.device("cuda")) if not check.passed]
    assert off == []
