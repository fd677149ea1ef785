"""``kosmos eval score``: published formats in, JSON out, clear errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kosmos_eval.cli import main
from kosmos_eval.score import score_files


def run(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> dict[str, Any]:
    assert main(["score", *map(str, argv)]) == 0
    return json.loads(capsys.readouterr().out)


def test_captions_equal_official(goldens: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = goldens / "captions"
    report = run(
        capsys, "--predictions", folder / "predictions.json", "--references", folder / "references.json",
        "--metrics", "cider,bleu,rouge_l",
    )  # fmt: skip
    official = json.loads((folder / "scores.json").read_text())
    for name in ("cider", "rouge_l", "bleu_1", "bleu_2", "bleu_3", "bleu_4"):
        assert report[name] == pytest.approx(official[name], abs=5e-4)
        low, high = report["intervals"][name]
        assert low < report[name] < high
    assert report["n"] == 182


def test_vqa_equals_official(goldens: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = goldens / "vqa"
    report = run(
        capsys, "--predictions", folder / "predictions.json", "--references", folder / "annotations.json",
        "--questions", folder / "questions.json", "--metrics", "vqa,vqa_lenient",
    )  # fmt: skip
    official = json.loads((folder / "scores.json").read_text())
    assert report["vqa"] == pytest.approx(official["overall_percent"] / 100, abs=1e-9)
    assert report["vqa_lenient"] > report["vqa"]
    types = report["by_question_type"]
    assert sum(group["n"] for group in types.values()) == 800
    assert sum(group["n"] * group["vqa"] for group in types.values()) / 800 == pytest.approx(report["vqa"])


def test_missing_vqa_predictions_are_not_passed_over(goldens: Path, tmp_path: Path) -> None:
    folder = goldens / "vqa"
    few = tmp_path / "few.json"
    few.write_text(json.dumps(json.loads((folder / "predictions.json").read_text())[:10]))
    with pytest.raises(ValueError, match="790 of 800 questions have no prediction"):
        score_files(few, folder / "annotations.json")
    report = score_files(few, folder / "annotations.json", partial=True)
    assert (report["n"], report["references_without_prediction"]) == (10, 790)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "not valid JSON"),
        ('{"a": 1}', "expected a list"),
        ('[{"image_id": 139}]', 'no "caption"'),
        ('[{"image_id": 139, "caption": "a"}, {"image_id": 139, "caption": "b"}]', "occurs twice"),
        ('[{"image_id": -1, "caption": "a"}]', "not among the references"),
        ("[]", "no predictions"),
    ],
)
def test_bad_prediction_files(goldens: Path, tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "predictions.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        score_files(path, goldens / "captions/references.json")


def test_missing_file() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        score_files("nowhere.json", "nowhere.json")
