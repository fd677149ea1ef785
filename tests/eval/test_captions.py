"""Caption metrics against the official toolkit's figures."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kosmos_eval import metrics
from kosmos_eval.metrics import captions, coco_java, ptb

WORDS = st.lists(st.sampled_from(["a", "red", "blue", "cat", "dog", "on", "the", "mat"]), min_size=1, max_size=9).map(
    " ".join
)


def cases(goldens: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (goldens / "ptb_tokenizer/cases.jsonl").read_text().splitlines()]


def test_tokenizer_equals_java_on_997_of_1000(goldens: Path) -> None:
    rows = cases(goldens)
    wrong = [row["caption"] for row in rows if ptb.tokenize(row["caption"]) != row["ptb"]]
    assert len(wrong) <= 0.003 * len(rows), wrong


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A man's dog can't wait.", "a man 's dog ca n't wait"),
        ("Mr. Lee met a T.V. crew (of 3) at 6:40PM!!", "mr. lee met a t.v. crew -lrb- of 3 -rrb- at 6:40 pm !!"),
        ("", ""),
    ],
)
def test_tokenizer_examples(caption: str, tokens: str) -> None:
    assert ptb.tokenize(caption) == tokens


@given(st.text(max_size=80))
def test_tokenizer_takes_any_text(text: str) -> None:
    tokens = ptb.tokenize(text).split(" ")
    assert not set(tokens) & ptb.PUNCTUATION


def test_corpus_scores_equal_official(coco_sample: dict[str, Any]) -> None:
    names = ["bleu", "rouge_l", "cider"]
    scores = {s.name: s.value for s in metrics.compute(names, coco_sample["predictions"], coco_sample["references"])}
    expected = coco_sample["expected"]["corpus"]
    official = {"cider": expected["CIDEr"], "rouge_l": expected["ROUGE_L"]}
    official |= {f"bleu_{n}": expected[f"Bleu_{n}"] for n in range(1, 5)}
    assert scores == pytest.approx(official, abs=5e-4)
    published = coco_sample["expected"]["published"]  # three decimals
    assert scores["cider"] == pytest.approx(published["CIDEr"], abs=1e-3)
    assert scores["rouge_l"] == pytest.approx(published["ROUGE_L"], abs=1e-3)
    assert [scores[f"bleu_{n}"] for n in range(1, 5)] == pytest.approx(
        [published[f"Bleu_{n}"] for n in range(1, 5)], abs=1e-3
    )


def test_per_image_scores_equal_official(coco_sample: dict[str, Any]) -> None:
    """To 1e-9: the sample's tokens are identical, so only arithmetic is compared."""
    scores = metrics.compute(["bleu_4", "rouge_l", "cider"], coco_sample["predictions"], coco_sample["references"])
    for score, key in zip(scores, ["Bleu_4", "ROUGE_L", "CIDEr"], strict=True):
        np.testing.assert_allclose(score.per_item, coco_sample["expected"][key], atol=1e-9)


def test_single_image_has_no_document_frequencies() -> None:
    """CIDEr of one image is 0 by definition; the table must not divide by zero."""
    assert captions.cider(["a cat"], [["a cat"]]).corpus == 0.0


@given(st.lists(WORDS, min_size=2, max_size=6, unique=True))
def test_a_perfect_caption_has_the_best_score(references: list[str]) -> None:
    lists = [[reference] for reference in references]
    assert captions.rouge_l(references, lists).corpus == pytest.approx(1.0)
    assert captions.bleu(references, lists)[0].corpus == pytest.approx(1.0)
    worse = captions.cider(references[1:] + references[:1], lists).corpus
    assert captions.cider(references, lists).corpus >= worse - 1e-12


@given(WORDS, WORDS)
def test_longest_common_subsequence_equals_recursion(first: str, second: str) -> None:
    a, b = first.split(), second.split()

    def slow(i: int, j: int) -> int:
        if i == len(a) or j == len(b):
            return 0
        if a[i] == b[j]:
            return 1 + slow(i + 1, j + 1)
        return max(slow(i + 1, j), slow(i, j + 1))

    assert captions.longest_common_subsequence(a[:6], b[:6]) == _clipped(slow, a, b)


def _clipped(slow: Any, a: list[str], b: list[str]) -> int:
    del a[6:], b[6:]
    return slow(0, 0)


def test_meteor_formula_on_known_counts() -> None:
    """The first three sample images: the Java matcher's counts and the published METEOR of each."""
    counts = np.array(
        [
            [13, 9, 6, 4, 0, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 2, 3, 3],
            [11, 10, 7, 4, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2],
            [6, 9, 1, 2, 3, 3, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 3, 5, 5],
        ],
        dtype=float,
    )
    expected = [0.08403930504067629, 0.07424593967517401, 0.2588869904888879]
    np.testing.assert_allclose(coco_java.meteor_from_counts(counts), expected, atol=1e-12)


@pytest.mark.skipif(not coco_java.available(), reason="METEOR needs java and pycocoevalcap")
def test_meteor_equals_official(coco_sample: dict[str, Any]) -> None:
    (score,) = metrics.compute(["meteor"], coco_sample["predictions"], coco_sample["references"])
    expected = coco_sample["expected"]
    assert score.value == pytest.approx(expected["corpus"]["METEOR"], abs=1e-6)
    assert score.value == pytest.approx(expected["published"]["METEOR"], abs=1e-3)
    np.testing.assert_allclose(score.per_item, expected["METEOR"], atol=1e-6)


@pytest.mark.skipif(coco_java.available(), reason="Java and pycocoevalcap are here")
def test_meteor_without_java_says_what_it_needs_before_a_run() -> None:
    with pytest.raises(ValueError, match="pycocoevalcap"):
        metrics.check_available(["cider", "meteor"])
    with pytest.raises(ValueError, match="pycocoevalcap"):
        metrics.compute(["meteor"], ["a cat", "a dog"], [["a cat"], ["a dog"]])


@pytest.mark.slow
def test_spice_equals_published(coco_sample: dict[str, Any]) -> None:
    try:
        metrics.check_available(["spice"])
    except ValueError as error:
        pytest.skip(str(error))
    (score,) = metrics.compute(["spice"], coco_sample["predictions"], coco_sample["references"])
    assert score.value == pytest.approx(coco_sample["expected"]["published"]["SPICE"], abs=1e-3)


def test_spice_opens_java_to_its_serialiser_and_asks_for_its_models_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a stand-in for the Java program: what it is started with, and what is said when its models are missing."""
    seen: list[str | None] = []

    class Spice:
        def compute_score(self, truth: Any, result: Any) -> Any:
            seen.append(os.environ.get("JDK_JAVA_OPTIONS"))
            return 0.5, [{"All": {"f": 0.25}}, {"All": {"f": 0.75}}]

    monkeypatch.setattr(coco_java, "available", lambda: True)
    monkeypatch.setattr(coco_java, "_spice_folder", lambda: tmp_path)
    with pytest.raises(ValueError, match=r"stanford-corenlp-3\.6\.0\.jar in .*get_stanford_models"):
        metrics.check_available(["spice"])
    for file in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"):
        (tmp_path / file).touch()
    for name in ("pycocoevalcap", "pycocoevalcap.spice", "pycocoevalcap.spice.spice"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["pycocoevalcap.spice.spice"].__dict__["Spice"] = Spice
    monkeypatch.setattr(coco_java, "_tokenized", lambda *_: ({}, {}))
    monkeypatch.delenv("JDK_JAVA_OPTIONS", raising=False)
    (score,) = metrics.compute(["spice"], ["a", "b"], [["a"], ["b"]])
    assert score.value == 0.5
    assert "--add-opens=java.base/java.lang=ALL-UNNAMED" in str(seen[0])
    assert "JDK_JAVA_OPTIONS" not in os.environ


def test_unknown_metric_gets_a_suggestion() -> None:
    with pytest.raises(ValueError, match="did you mean 'cider'"):
        metrics.compute(["cidre"], ["a"], [["a"]])
