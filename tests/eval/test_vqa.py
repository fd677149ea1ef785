"""VQA accuracy against the official evaluation code, and the other answer metrics against hand-made cases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kosmos_eval.metrics import strings, vqa


def test_normalisation_equals_official_on_every_row(goldens: Path) -> None:
    rows = json.loads((goldens / "vqa_normalisation/official_normalisation_cases.json").read_text())
    assert len(rows) > 80
    for row in rows:
        assert vqa.strip_punctuation(row["in"]) == row["processPunctuation"], row
        assert vqa.normalise_words(row["in"]) == row["processDigitArticle"], row
        assert vqa.normalise(row["in"]) == row["both"], row


def test_votes_equal_official_on_every_row(goldens: Path) -> None:
    for row in json.loads((goldens / "vqa_normalisation/official_vote_cases.json").read_text()):
        accuracy = vqa.vqa_accuracy(row["prediction"], row["answers"])
        assert 100 * accuracy == pytest.approx(row["official_accuracy"], abs=1e-9), row


def test_800_questions_equal_official(goldens: Path) -> None:
    annotations = json.loads((goldens / "vqa/annotations.json").read_text())["annotations"]
    answers = {entry["question_id"]: [a["answer"] for a in entry["answers"]] for entry in annotations}
    predictions = json.loads((goldens / "vqa/predictions.json").read_text())
    official = json.loads((goldens / "vqa/scores.json").read_text())
    for row in predictions:
        accuracy = 100 * vqa.vqa_accuracy(row["answer"], answers[row["question_id"]])
        assert accuracy == pytest.approx(official["per_question_percent"][str(row["question_id"])], abs=1e-9), row


def test_lenient_normalises_even_when_all_agree() -> None:
    assert vqa.vqa_accuracy("Yes.", ["yes"] * 10) == 0.0
    assert vqa.vqa_accuracy("Yes.", ["yes"] * 10, rule="lenient") == 1.0


@given(
    st.lists(st.sampled_from(["red", "blue", "Red.", "a red"]), min_size=2, max_size=10), st.sampled_from(["red", "x"])
)
def test_votes_equal_leaving_each_annotator_out(answers: list[str], prediction: str) -> None:
    """The definition, written as the loop that the closed form replaces."""
    given_answers = [vqa.normalise(a) for a in answers] if len(set(answers)) > 1 else answers
    accuracies = []
    for i in range(len(given_answers)):
        others = given_answers[:i] + given_answers[i + 1 :]
        accuracies.append(min(1.0, sum(other == prediction for other in others) / 3))
    assert vqa.vqa_accuracy(prediction, answers) == pytest.approx(sum(accuracies) / len(accuracies))


def test_no_answers_and_unknown_rule_are_errors() -> None:
    with pytest.raises(ValueError, match="no answers"):
        vqa.vqa_accuracy("red", [])
    with pytest.raises(ValueError, match="official"):
        vqa.vqa_accuracy("red", ["red"], rule="strict")


def test_answer_metrics_by_hand() -> None:
    assert strings.exact_match("The Red ball!", ["red ball"]) == 1.0
    assert strings.f1("a red ball", ["red ball", "cube"]) == 1.0
    assert strings.f1("red cube", ["red ball"]) == pytest.approx(0.5)
    assert strings.f1("", ["red"]) == 0.0
    assert strings.anls("hallo", ["hello"]) == pytest.approx(0.8)
    assert strings.anls("abc", ["xyz"]) == 0.0
    assert strings.accuracy(" Yes", ["yes"]) == 1.0
    assert strings.accuracy("yes.", ["yes"]) == 0.0


@given(st.text(max_size=8), st.text(max_size=8))
def test_levenshtein_is_a_distance(first: str, second: str) -> None:
    distance = strings.levenshtein(first, second)
    assert distance == strings.levenshtein(second, first)
    assert abs(len(first) - len(second)) <= distance <= max(len(first), len(second))
    assert (distance == 0) == (first == second)
