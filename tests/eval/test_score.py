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
        ('[{"image_id": 139, "caption": null}]', '"caption" is None, not text'),
        ('[{"image_id": 139, "caption": ["a"]}]', "is \\['a'\\], not text"),
        ('[{"image_id": [139], "caption": "a"}]', '"image_id" is'),
        ('[{"image_id": "139", "caption": "a"}]', r"not among the references \(first: '139'\)"),
        ("[]", "no predictions"),
    ],
)
def test_bad_prediction_files(goldens: Path, tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "predictions.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        score_files(path, goldens / "captions/references.json")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"answers": []}, "question 1 has an empty list of answers"),
        ({"answers": None}, '"answers" is None, not a list'),
        ({"answers": [{"answer_confidence": "yes"}]}, "question 1: an answer is None"),
        ({"caption": None}, '"caption" is None, not text'),
        ({"multiple_choice_answer": "yes"}, "neither VQA answers nor captions"),
    ],
)
def test_bad_reference_files(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    (tmp_path / "r.json").write_text(json.dumps({"annotations": [{"question_id": 1, "image_id": 1} | entry]}))
    key, value = ("image_id", "caption") if "caption" in entry else ("question_id", "answer")
    (tmp_path / "p.json").write_text(json.dumps([{key: 1, value: "3"}]))
    with pytest.raises(ValueError, match=message):
        score_files(tmp_path / "p.json", tmp_path / "r.json")


def test_numbers_are_answers_too(tmp_path: Path) -> None:
    annotation = {"question_id": 1, "image_id": 1, "answers": [{"answer": 3}, {"answer": "3"}, "3", 4]}
    (tmp_path / "r.json").write_text(json.dumps({"annotations": [annotation]}))
    (tmp_path / "p.json").write_text(json.dumps([{"question_id": 1, "answer": 3}]))
    assert score_files(tmp_path / "p.json", tmp_path / "r.json")["vqa"] == pytest.approx((3 * 2 / 3 + 1) / 4)


@pytest.mark.parametrize(
    ("folder", "metric", "message"),
    [
        ("captions", "cidr", "did you mean 'cider'"),
        ("captions", "clipscor", "did you mean 'clipscore'"),
        ("captions", "vqa", r"metric 'vqa' is none for .*which holds captions; choose from bleu_1"),
        ("vqa", "clipscore", r"metric 'clipscore' is none for .*which holds VQA answers"),
        ("vqa", "roc_auc", "metric 'roc_auc' is none"),
    ],
)
def test_metrics_that_do_not_go_with_the_files(goldens: Path, folder: str, metric: str, message: str) -> None:
    references = goldens / folder / ("references.json" if folder == "captions" else "annotations.json")
    with pytest.raises(ValueError, match=message):
        score_files(goldens / folder / "predictions.json", references, names=[metric])


def test_missing_file() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        score_files("nowhere.json", "nowhere.json")
