"""ROC AUC against scikit-learn, its interval against a bootstrap of whole AUCs, and the task that is scored by it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kosmos import KosmosForConditionalGeneration, KosmosProcessor
from kosmos.cli import main
from kosmos_eval import metrics, statistics, tasks
from kosmos_eval.evaluate import evaluate

ITEMS = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40)


@given(ITEMS)
def test_equals_scikit_learn_with_ties(items: list[tuple[int, bool]]) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    confidences, positive = [float(score) for score, _ in items], [label for _, label in items]
    if len(set(positive)) < 2:
        with pytest.raises(ValueError, match="needs items of both classes"):
            metrics.roc_auc(confidences, positive)
        return
    score = metrics.roc_auc(confidences, positive)
    assert score.value == pytest.approx(sklearn.roc_auc_score(positive, confidences), abs=1e-12)
    placed = score.per_item
    for label in (True, False):  # both class means of the placement values are the AUC
        assert placed[[one is label for one in positive]].mean() == pytest.approx(score.value, abs=1e-12)


def test_interval_is_that_of_resampled_aucs() -> None:
    """The first-order bootstrap of the sums against AUCs of 1,000 whole resamples by scikit-learn."""
    sklearn = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    positive = generator.random(300) < 0.4
    confidences = generator.normal(size=300) + 0.8 * positive
    low, high = statistics.interval(metrics.roc_auc(confidences, positive))
    values = []
    for _ in range(1000):
        drawn = generator.integers(300, size=300)
        values.append(sklearn.roc_auc_score(positive[drawn], confidences[drawn]))
    assert (low, high) == pytest.approx(tuple(np.percentile(values, (2.5, 97.5))), abs=0.006)
    with pytest.raises(ValueError, match="is no number"):
        metrics.roc_auc([0.0, float("nan")], [True, False])


@pytest.fixture
def memes(tmp_path: Path) -> Path:
    """HatefulMemes in its published layout: img/, JSON lines with id, img, label, text."""
    (tmp_path / "img").mkdir()
    for split, start in (("dev_seen", 0), ("train", 20)):
        rows = [{"id": i, "img": f"img/{i}.png", "label": i % 2, "text": "is it red"} for i in range(start, start + 12)]
        for row in rows:
            Image.new("RGB", (16, 16), (20 * int(row["id"]) % 256, 0, 90)).save(tmp_path / str(row["img"]))
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_hateful_memes(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, memes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    rows = evaluate(model, processor, "hateful_memes", memes, shots=(0, 2), out=memes / "out")
    files = [memes / f"out/samples/model/hateful_memes-{k}shot-image+text.jsonl" for k in (0, 2)]
    for row, file in zip([row for row in rows if row["metric"] == "roc_auc"], files, strict=False):
        records = [json.loads(line) for line in file.read_text().splitlines()]
        expected = sklearn.roc_auc_score(
            [record["answers"] == ["yes"] for record in records],
            [record["scores"][0] - record["scores"][1] for record in records],
        )
        assert row["value"] == pytest.approx(expected, abs=1e-9)
        assert row["low"] <= row["value"] <= row["high"]
        assert row["baselines"] == {"majority answer": 0.5, "question only": 0.5, "chance": 0.5}
    assert main(["eval", "compare", *map(str, files), "--json"]) == 0
    difference = json.loads(capsys.readouterr().out)
    assert difference["metric"] == "roc_auc"
    values = [row["value"] for row in rows if row["model"] == "model" and row["metric"] == "roc_auc"]
    assert difference["difference"] == pytest.approx(values[1] - values[0], abs=1e-9)


def test_one_class_and_wrong_tasks_are_said_plainly(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, memes: Path
) -> None:
    lines = (memes / "dev_seen.jsonl").read_text().splitlines(keepends=True)
    (memes / "dev_seen.jsonl").write_text("".join(lines[::2]))
    with pytest.raises(ValueError, match="both classes, but all 6 are negative"):
        evaluate(model, processor, "hateful_memes", memes)
    with pytest.raises(ValueError, match="two candidates, the positive first"):
        tasks.load("easy_vqa", ["metrics=[roc_auc]"])
    with pytest.raises(ValueError, match="needs confidences"):
        metrics.compute(["roc_auc"], ["yes"], [["yes"]])
