"""``kosmos share``: what is given away loads again, with its code, and its card says what the run knows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from kosmos import load
from kosmos.share import main


@pytest.fixture
def run(speaker_folder: Path, tmp_path: Path) -> Path:
    """A run directory with a checkpoint, settings, and scores."""
    folder = tmp_path / "run"
    checkpoint = folder / "checkpoints" / "step-000200"
    shutil.copytree(speaker_folder, checkpoint)
    (checkpoint.parent / "latest").write_text("step-000200\n")
    sources = [{"name": "q|a", "weight": 0.7, "objective": {"name": "causal"}}]
    values = {"steps": 200, "model": {"checkpoint": "runs/base"}, "data": {"sources": sources, "row_tokens": 512}}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    known = {"documents": 17, "images": 16, "fingerprint": "ede783a2"}
    started = [{"commit": "abc", "packages": {"torch": "2.14.1"}, "data": {"q|a": known}}]
    (folder / "environment.json").write_text(json.dumps(started))
    row = {"task": "easy_vqa", "model": "tuned", "shots": 0, "context": "image+text", "metric": "vqa", "value": 0.8394}
    row |= {"low": 0.83, "high": 0.85, "baselines": {"shuffled": 0.67, "majority answer": 0.37}}
    (folder / "eval").mkdir()
    (folder / "eval" / "results.json").write_text(json.dumps([row, {**row, "baseline": True}]))
    return folder


def test_a_folder_to_give_away(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = tmp_path / "shared"
    assert main([str(run), str(shared), "--licence", "mit"]) == 0
    names = {path.name for path in shared.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "modeling_kosmos.py", "versions.py"} <= names
    assert "README.md" in capsys.readouterr().out
    card = (shared / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["license"] == "mit"
    assert header["pipeline_tag"] == "image-text-to-text"
    for said in (
        "| q\\|a | 0.7 | causal | 17 | 16 | ede783a2 |", "200 steps, from `runs/base`", "commit abc; torch 2.14.1",
        "| easy_vqa | 0 | image+text | vqa | 0.839 | 0.830 to 0.850 | 0.670 |", "## Limits",
    ):  # fmt: skip
        assert said in card, said
    assert card.count("easy_vqa") == 1  # a baseline is no score of the model
    before, _ = load(run)
    after, _ = load(shared)
    assert all(torch.equal(after.state_dict()[name], value) for name, value in before.state_dict().items())
    with pytest.raises(ValueError, match="holds something already"):
        main([str(run), str(shared)])


def test_what_is_not_known_is_not_claimed(run: Path, tmp_path: Path) -> None:
    for name in ("config.yaml", "environment.json", "eval/results.json"):
        (run / name).unlink()
    main([str(run), str(tmp_path / "bare")])
    card = (tmp_path / "bare" / "README.md").read_text()
    assert card.count("Not known") == 2
    assert "None: it was not evaluated" in card
    assert "license:" not in card
    (tmp_path / "no.json").write_text('{"a": 1}')
    for results in ("no.json", "missing.json"):
        with pytest.raises(ValueError, match="of kosmos eval"):
            main([str(run), str(tmp_path / "other"), "--results", str(tmp_path / results)])
