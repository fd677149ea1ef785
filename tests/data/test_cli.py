"""kosmos data, as a user types it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kosmos import settings
from kosmos.cli import main
from kosmos.processing_kosmos import KosmosProcessor
from kosmos_data import DataConfig


@pytest.fixture
def run_file(tmp_path: Path, make_config: Callable[..., DataConfig], processor: KosmosProcessor) -> Path:
    """A run's YAML with sections that are not ours."""
    import yaml

    processor.save_pretrained(tmp_path / "processor")
    body = {"processor": str(tmp_path / "processor"), "steps": 3, "data": settings.to_dict(make_config())}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(body))
    return tmp_path / "run.yaml"


def test_order_can_be_compared_with_diff(run_file: Path, capsys: pytest.CaptureFixture) -> None:
    state = str(run_file.parent / "state.json")
    assert main(["data", "order", str(run_file), "--steps", "6"]) == 0
    whole = capsys.readouterr().out
    assert [len(line.split()[1]) for line in whole.splitlines()] == [64] * 6
    assert main(["data", "order", str(run_file), "--ranks", "2", "--steps", "4", "--state", state]) == 0
    assert main(["data", "order", str(run_file), "--ranks", "4", "--start", "4", "--steps", "2", "--state", state]) == 0
    assert capsys.readouterr().out == whole
    assert json.loads(Path(state).read_text())["step"] == 6
    assert main(["data", "order", str(run_file), "--start", "2", "--steps", "1", "--state", state]) == 2
    assert "stands at step 6, after step 2" in capsys.readouterr().err


def test_replay_shows_the_documents_of_a_step(run_file: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["data", "replay", str(run_file), "--step", "2", "--row", "17"]) == 0
    printed = capsys.readouterr().out
    assert "step 2, row 17" in printed
    assert "<s>" in printed
    assert "row 18" not in printed
    assert main(["data", "replay", str(run_file), "--step", "2", "--row", "999"]) == 2
    assert "step 2 has the rows 16 to 23, not 999" in capsys.readouterr().err


def test_inspect_shows_each_kind(corpora: Path, run_file: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["data", "inspect", str(corpora)]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("pair: 000000", "text: 000000", "interleaved: ", "image PNG 12×10"))
    processor = str(run_file.parent / "processor")
    assert main(["data", "inspect", str(corpora / "pairs"), "--objective", "causal", "--processor", processor]) == 0
    assert "predicts" in capsys.readouterr().out
    latest = run_file.parent / "a run" / "checkpoints" / "step-000001"
    shutil.copytree(processor, latest)
    (latest.parent / "latest").write_text("step-000001\n")
    run = str(latest.parent.parent)
    assert main(["data", "inspect", str(corpora / "pairs"), "--objective", "causal", "--processor", run]) == 0
    assert "predicts" in capsys.readouterr().out


def test_check_exits_with_2_when_something_is_wrong(
    corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["data", "check", str(corpora)]) == 0
    import shutil

    shutil.copytree(corpora / "pairs", tmp_path / "c")
    (tmp_path / "c/000001.tar").write_bytes(b"")
    assert main(["data", "check", str(tmp_path / "c")]) == 2
    assert "truncated" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "nowhere"], "no such folder of shards"),
        (["check", "nowhere"], "no such folder of shards"),
        (["order", "nowhere.yaml", "--steps", "1"], "no such settings file"),
        (["make", "startr", "--out", "x"], "no recipe 'startr'"),
        (["inspect", ".", "--objective", "causal"], "needs --processor"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_what_a_recipe_takes_and_how_many_there_are(corpora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", "make", "--help"])
    assert main(["data", "inspect", str(corpora / "pairs")]) == 0
    shown = capsys.readouterr().out
    assert "text_characters=1000" in " ".join(shown.split())
    assert not re.search(r"\b1 (documents|images|shards)\b", shown)
    assert main(["data", "index", "nowhere"]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
