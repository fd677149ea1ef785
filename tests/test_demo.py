"""The demo from end to end in its own steps, only shorter, and then the notebook on what it leaves."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from rich.console import Console

from kosmos import cli
from kosmos_train.demo import run_demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo of few steps: every room is entered, nothing is learned."""
    out = tmp_path_factory.mktemp("demo")
    run_demo(out, Console(quiet=True), steps_factor=0.02, limit=48)
    return out


@pytest.mark.slow
def test_demo_leaves_what_the_readme_promises(demo: Path) -> None:
    rows = json.loads((demo / "results.json").read_text())
    wanted = {"task", "model", "shots", "context", "metric", "value", "low", "high", "n"}
    assert all(wanted <= row.keys() for row in rows)
    zero_shot = {(row["model"], row["context"]) for row in rows if row["shots"] == 0 and row["task"] == "easy_vqa"}
    assert {("tuned", "image+text"), ("tuned", "shuffled"), ("pretrained", "image+text")} <= zero_shot
    assert {row["shots"] for row in rows} == {0, 2, 4, 8}
    assert any(row["metric"] == "cider" for row in rows)
    for picture in ("loss.png", "answers.png"):
        assert (demo / picture).read_bytes().startswith(b"\x89PNG")
    metrics = [json.loads(line) for line in (demo / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    assert all({"step", "loss", "tokens"} <= row.keys() for row in metrics)
    assert set(metrics[-1]["source_loss"]) == {"pairs", "qa", "interleaved", "text"}
    assert sum(row["packed"] for row in metrics) / len(metrics) >= 0.97


@pytest.mark.slow
def test_a_finished_demo_repeats_nothing(demo: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in demo.rglob("*.safetensors")}
    run_demo(demo, Console(quiet=True), steps_factor=0.02, limit=48)
    assert {path: path.stat().st_mtime_ns for path in demo.rglob("*.safetensors")} == before


@pytest.mark.slow
def test_the_notebook_runs(demo: Path, repository: Path) -> None:
    notebook = nbformat.read(repository / "notebooks" / "chat.ipynb", as_version=4)
    os.environ["KOSMOS_RUN"] = str(demo)
    try:
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(repository)}}).execute()
    finally:
        del os.environ["KOSMOS_RUN"]
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("text/html" in output.get("data", {}) for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_readme_names_commands_and_files_that_exist(repository: Path) -> None:
    makefile = (repository / "Makefile").read_text()
    top = [path.read_text() for path in repository.glob("*.md")]
    rooms = [(repository / folder / "README.md").read_text() for folder in ("kosmos", "data", "train", "eval")]
    for target in re.findall(r"(?:^|`)make ([a-z]+)", "\n".join(top), flags=re.MULTILINE):
        assert f"\n{target}:" in makefile, f"make {target}"
    for command in re.findall(r"(?:^|`)\s*(kosmos [a-z]+[^`\n#]*)", "\n".join(top + rooms), flags=re.MULTILINE):
        words = shlex.split(command.replace("…", "").rstrip("\\ "), comments=True)
        assert words[1] in cli.VERBS, command
        for word in words[2:]:
            if word.startswith("train/configs/"):
                assert (repository / word).exists(), command
