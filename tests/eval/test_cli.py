"""``kosmos eval`` on a saved checkpoint: files, table, report, comparison, and one-line errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kosmos import KosmosForConditionalGeneration, KosmosProcessor
from kosmos.cli import main


@pytest.fixture(scope="module")
def checkpoint(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "toy"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_evaluate_report_and_compare(
    checkpoint: Path, toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--data", str(toy_data), "--tasks", "easy_vqa,easy_vqa_caption", "--out", str(tmp_path)]
    assert main(["eval", str(checkpoint), *common, "--shots", "0,2", "--context", "image+text"]) == 0
    printed = capsys.readouterr().out
    assert "first prompt" in printed
    assert "majority" in printed
    rows = json.loads((tmp_path / "results.json").read_text())
    assert {row["task"] for row in rows} == {"easy_vqa", "easy_vqa_caption"}
    assert {row["model"] for row in rows} == {"toy", "majority answer", "question only"}

    assert main(["eval", "report", str(tmp_path), "--out", str(tmp_path / "report")]) == 0
    table = (tmp_path / "report/report.md").read_text()
    assert "| easy_vqa | toy | 2 | image+text | vqa |" in table
    assert (tmp_path / "report/shots.png").stat().st_size > 5000
    capsys.readouterr()

    samples = tmp_path / "samples/toy"
    files = [str(samples / f"easy_vqa-{k}shot-image+text.jsonl") for k in (0, 2)]
    assert main(["eval", "compare", *files]) == 0
    difference = json.loads(capsys.readouterr().out)
    assert difference["n"] == 24
    assert difference["clusters"] == 12
    assert difference["low"] <= difference["difference"] <= difference["high"]


def test_a_second_evaluation_adds_to_the_results(checkpoint: Path, toy_data: Path, tmp_path: Path) -> None:
    common = [str(checkpoint), "--data", str(toy_data), "--tasks", "easy_vqa", "--out", str(tmp_path)]
    assert main(["eval", *common]) == 0
    first = json.loads((tmp_path / "results.json").read_text())
    assert main(["eval", *common, "--context", "text-only"]) == 0
    both = json.loads((tmp_path / "results.json").read_text())
    assert len(both) == len(first) + 3
    assert main(["eval", *common]) == 0
    assert len(json.loads((tmp_path / "results.json").read_text())) == len(both)
    assert main(["eval", *common, "--limit", "6"]) == 0  # the model's rows are replaced, baselines on other items added
    limited = json.loads((tmp_path / "results.json").read_text())
    assert sorted({row["n"] for row in limited if row["model"] == "majority answer" and not row["question_type"]}) == [
        6,
        24,
    ]
    mine = (row for row in limited if row["model"] == "toy" and row["context"] == "image+text")
    assert next(mine)["n"] == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "easy_vqas"], "did you mean 'easy_vqa'"),
        (["--tasks", "easy_vqa", "--context", "image"], "unknown context 'image'"),
        (["--tasks", "easy_vqa", "--set", "metrics=[cidr]"], "did you mean 'cider'"),
        (["--tasks", "easy_vqa", "--data", "nowhere"], "nowhere: no such data folder"),
        (["--tasks", "easy_vqa", "--limit", "0"], "at least 1"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    checkpoint: Path,
    toy_data: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    data = [] if "--data" in arguments else ["--data", str(toy_data)]
    assert main(["eval", str(checkpoint), *arguments, *data, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]  # a progress bar of the weights may stand above it
    assert "Traceback" not in error


def test_a_folder_that_is_no_checkpoint(toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(tmp_path), "--tasks", "easy_vqa", "--data", str(toy_data)]) == 2
    assert "not a checkpoint" in capsys.readouterr().err


def test_a_report_of_many_tasks_and_of_baselines_alone(tmp_path: Path) -> None:
    """Panels stand in rows of three; a task without a model's rows has a panel of lines."""
    from PIL import Image

    from kosmos_eval.report import report

    common = {"shots": 0, "context": "none", "value": 0.5, "low": 0.5, "high": 0.5, "n": 4, "question_type": None}
    rows = [
        common | {"task": f"t{i}", "model": model, "metric": "accuracy", "baseline": model == "chance"}
        for i in range(5)
        for model in (["chance"] if i == 4 else ["a", "chance"])
    ]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    assert "| t4 | *chance* | 0 |" in report([tmp_path], tmp_path / "out").read_text()
    with Image.open(tmp_path / "out/shots.png") as picture:
        assert picture.size == (2475, 1200)


def test_mistyped_uses_and_numbers(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "repor", "x"]) == 2
    assert "did you mean 'report'?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["eval", str(checkpoint), "--tasks", "easy_vqa", "--data", ".", "--shots", "a"])
    assert "'a' is no list of numbers such as 0,2,4,8" in capsys.readouterr().err


def test_the_list_of_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "tasks"]) == 0
    assert "easy_vqa" in capsys.readouterr().out
