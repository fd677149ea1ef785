"""What a GPU needs is missed before the first step."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from kosmos.gpu import lacking, lacking_for_triton, versions


def test_compiler_and_headers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No compiler on the path, none in CC, no Python.h; each is named with the way to get it."""
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert lacking_for_triton() == ["no C compiler: apt install gcc libc6-dev, or set CC"]
    monkeypatch.setenv("CC", sys.executable)
    assert lacking_for_triton() == []
    (tmp_path / "Python.h").unlink()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert lacking_for_triton() == [f"no {tmp_path / 'Python.h'}: apt install python{version}-dev"]


def test_a_gpu_without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A V100 trains in fp32 alone; what torch would emulate does not count."""
    monkeypatch.setattr("kosmos.gpu.lacking_for_triton", list)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    assert lacking(torch.device("cuda"), "fp32") == []
    assert lacking(torch.device("cuda"), "bf16") == ["Tesla V100 has no bf16: engine.precision=fp32, or another GPU"]


def test_a_cpu_needs_nothing() -> None:
    assert lacking(torch.device("cpu"), "bf16") == []
    assert versions(torch.device("cpu")) == {"torch": torch.__version__}
