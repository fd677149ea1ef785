"""``kosmos eval`` on a saved checkpoint: files, table, report, comparison, and one-line errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kosmos.cli import main


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
    assert "## easy_vqa: vqa" in table
    assert "| model | context | 0 shots | 2 shots |" in table
    assert "| easy_vqa | toy | 2 | image+text | vqa |" in table
    assert (tmp_path / "report/shots.png").stat().st_size > 5000
    capsys.readouterr()

    samples = tmp_path / "samples/toy"
    files = [str(samples / f"easy_vqa-{k}shot-image+text.jsonl") for k in (0, 2)]
    assert main(["eval", "compare", *files, "--json"]) == 0
    difference = json.loads(capsys.readouterr().out)
    assert difference["n"] == 24
    assert difference["clusters"] == 12
    assert difference["low"] <= difference["difference"] <= difference["high"]
    captions = [str(samples / f"easy_vqa_caption-{k}shot-image+text.jsonl") for k in (0, 2)]
    assert main(["eval", "compare", *captions, "--metric", "bleu_1", "--json"]) == 0
    difference = json.loads(capsys.readouterr().out)
    # of the corpus, as in results.json
    bleu = [row["value"] for row in rows if (row["model"], row["metric"]) == ("toy", "bleu_1")]
    assert (difference["first"], difference["second"]) == pytest.approx(tuple(bleu))


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
        (["--tasks", "easy_vqa", "--device", "gpu"], "device 'gpu'"),
        (["--tasks", "easy_vqa", "--shots", "0,30"], "30 demonstrations wanted, but split 'train' has 24"),
        (["--tasks", "easy_vqa", "--set", "dataset.images={split}/{image_id}.png"], "--set dataset.images="),
        (["--tasks", ","], "no task is named"),
        (["--tasks", "easy_vqa,easy_vqa"], "two tasks have one name"),
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
    assert not (tmp_path / "samples").exists(), "nothing is answered before all is checked"


def test_a_bad_task_stops_the_others_before_they_start_and_a_late_error_loses_none(
    checkpoint: Path,
    toy_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    common = ["eval", str(checkpoint), "--data", str(toy_data), "--out", str(tmp_path)]
    assert main([*common, "--tasks", "easy_vqa,coco_caption"]) == 2
    assert "dataset_coco.json: no such file" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
    from kosmos_eval.session import Session

    run = Session.run

    def failing(self: Session, one: Any) -> Any:
        if self.task.name == "easy_vqa_caption":
            raise OSError("disk on fire")
        return run(self, one)

    monkeypatch.setattr(Session, "run", failing)
    assert main([*common, "--tasks", "easy_vqa,easy_vqa_caption"]) == 2
    assert {row["task"] for row in json.loads((tmp_path / "results.json").read_text())} == {"easy_vqa"}


def test_a_report_of_two_files(tmp_path: Path) -> None:
    """Baselines that both hold stand once; two results of one model under one name are refused."""
    from kosmos_eval.report import report

    common = {"task": "t", "shots": 0, "context": "none", "metric": "accuracy", "low": 0, "high": 1, "n": 4}
    chance = common | {"model": "chance", "value": 0.5, "baseline": True}
    for model, value in (("a", 0.6), ("b", 0.7), ("c", 0.6)):
        (tmp_path / model).mkdir()
        rows = [common | {"model": "a" if model == "c" else model, "value": value + 0.01 * (model == "c")}, chance]
        (tmp_path / model / "results.json").write_text(json.dumps(rows))
    text = report([tmp_path / "a", tmp_path / "b"], tmp_path / "out").read_text()
    assert text.count("| t | *chance* |") == 1
    assert "| a | none | 0.600 (0.000–1.000) |" in text
    with pytest.raises(ValueError, match="a second result of model 'a' on t with 0 shots"):
        report([tmp_path / "a", tmp_path / "c"], tmp_path / "out")
    (tmp_path / "a" / "results.json").write_text('[{"metric": "x"}]')
    with pytest.raises(ValueError, match="expected a list of result rows, each with task, model"):
        report([tmp_path / "a"], tmp_path / "out")


def test_comparing_what_are_no_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.json").write_text("[\n]\n")
    assert main(["eval", "compare", str(tmp_path / "results.json"), str(tmp_path / "results.json")]) == 2
    assert "results.json:1: not valid JSON" in capsys.readouterr().err


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
