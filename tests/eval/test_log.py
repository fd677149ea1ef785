"""The log of answers: resumed, shared among ranks, limited; the same rows and lines, and nothing is asked twice."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from kosmos import KosmosForConditionalGeneration, KosmosProcessor
from kosmos_eval import tasks
from kosmos_eval.evaluate import evaluate
from kosmos_eval.sample_log import Rank
from kosmos_eval.tasks import Task

Model = KosmosForConditionalGeneration


def strip(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return json.loads(json.dumps(rows))


def test_resume_answers_only_what_is_open(
    model: Model,
    processor: KosmosProcessor,
    toy_data: Path,
    task: Task,
    tmp_path: Path,
    asked: list[int],
) -> None:
    """A log cut in the middle of a line, as kill -9 leaves it: the same rows, and only the lost items are asked
    again."""
    whole = evaluate(model, processor, task, toy_data, out=tmp_path)
    log = tmp_path / "samples/model/easy_vqa-0shot-image+text.jsonl"
    before = log.read_text()
    kept = before.splitlines(keepends=True)[:10]
    log.unlink()
    log.with_name("easy_vqa-0shot-image+text.part-0.jsonl").write_text("".join(kept) + '{"id": "1050", "pred')
    asked.clear()
    assert strip(evaluate(model, processor, task, toy_data, out=tmp_path)) == strip(whole)
    assert sum(asked) == 14
    assert log.read_text() == before
    asked.clear()
    assert strip(evaluate(model, processor, task, toy_data, out=tmp_path)) == strip(whole)
    assert sum(asked) == 0


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("starter_text", {"text": "is it a red circle"}),
        ("piqa", {"sol2": "a blue circle"}),
        ("winogrande", {"sentence": "is it _ or a square"}),
    ],
)
def test_changed_items_are_answered_again(
    name: str, changed: dict[str, str], model: Model, processor: KosmosProcessor, tmp_path: Path
) -> None:
    """What is scored but stands in no prompt: a text, a candidate, the words behind a candidate."""
    file = {"starter_text": "test/text.jsonl", "piqa": "valid.jsonl", "winogrande": "dev.jsonl"}[name]
    first = {
        "starter_text": {"id": "a", "text": "a blue square"},
        "piqa": {"goal": "is it?", "sol1": "yes", "sol2": "a red square"},
        "winogrande": {"sentence": "is it _ or a circle", "option1": "red", "option2": "blue", "answer": "1"},
    }[name]
    (tmp_path / "test").mkdir()
    (tmp_path / "valid-labels.lst").write_text("0")
    scores = []
    for entry in (first, first | changed):
        (tmp_path / file).write_text(json.dumps(entry))
        evaluate(model, processor, name, tmp_path, out=tmp_path / "out")
        line = (tmp_path / f"out/samples/model/{name}-0shot-image+text.jsonl").read_text()
        scores.append(json.loads(line)["scores"])
    assert scores[0] != scores[1]


def test_other_weights_are_not_resumed(
    model: Model,
    processor: KosmosProcessor,
    toy_data: Path,
    task: Task,
    tmp_path: Path,
    asked: list[int],
) -> None:
    evaluate(model, processor, task, toy_data, out=tmp_path)
    asked.clear()
    weight = model.model.decoder.layers[0].ffn.fc1.weight
    with torch.no_grad():
        weight.mul_(1.01)
    try:
        evaluate(model, processor, task, toy_data, out=tmp_path)
    finally:
        with torch.no_grad():
            weight.div_(1.01)
    assert sum(asked) == 24


def test_two_ranks_equal_one(
    model: Model, processor: KosmosProcessor, toy_data: Path, task: Task, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"shots": (0, 2), "contexts": ("image+text", "shuffled")}
    single = evaluate(model, processor, task, toy_data, out=tmp_path / "one", **options)
    results: dict[int, list[Any]] = {}

    def work(index: int) -> None:
        results[index] = evaluate(
            model, processor, task, toy_data, out=tmp_path / "two", rank=Rank(index, 2), **options
        )

    threads = [threading.Thread(target=work, args=(index,)) for index in (1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    assert results[1] == []
    assert strip(results[0]) == strip(single)
    for name in ("easy_vqa-0shot-image+text", "easy_vqa-2shot-shuffled"):
        one, two = ((tmp_path / folder / f"samples/model/{name}.jsonl").read_text() for folder in ("one", "two"))
        assert one == two


def test_the_limit_is_a_fixed_subset(
    model: Model, processor: KosmosProcessor, toy_data: Path, task: Task, tmp_path: Path
) -> None:
    evaluate(model, processor, task, toy_data, out=tmp_path / "all")
    rows = evaluate(model, processor, task, toy_data, limit=7, out=tmp_path / "few")
    whole, few = (
        (tmp_path / name / "samples/model/easy_vqa-0shot-image+text.jsonl").read_text() for name in ("all", "few")
    )
    assert rows[0]["n"] == 7
    assert set(few.splitlines()) <= set(whole.splitlines())


def test_a_limited_run_throws_no_answer_away(
    model: Model,
    processor: KosmosProcessor,
    toy_data: Path,
    task: Task,
    tmp_path: Path,
    asked: list[int],
) -> None:
    log = tmp_path / "samples/model/easy_vqa-0shot-image+text.jsonl"
    evaluate(model, processor, task, toy_data, out=tmp_path)
    whole = log.read_text()
    asked.clear()
    evaluate(model, processor, task, toy_data, limit=7, out=tmp_path)
    assert len(log.read_text().splitlines()) == 7
    evaluate(model, processor, task, toy_data, out=tmp_path)
    assert log.read_text() == whole
    assert [path.name for path in log.parent.iterdir()] == [log.name]
    assert sum(asked) == 0


def test_texts_with_line_separators_are_logged_and_resumed(
    model: Model, processor: KosmosProcessor, tmp_path: Path, asked: list[int]
) -> None:
    """U+2028 and U+0085 are white space to Python's splitlines(), but no end of a JSON line."""
    (tmp_path / "test.jsonl").write_text(
        json.dumps({"question": "is it\u2028 red\x85?", "answers": ["yes"]}, ensure_ascii=False)
    )
    task = Task("t", tasks.DatasetFiles("jsonl", "{split}.jsonl"), tasks.Prompt("{question}"), metrics=["f1"], name="t")
    evaluate(model, processor, task, tmp_path, out=tmp_path / "out")
    asked.clear()
    evaluate(model, processor, task, tmp_path, out=tmp_path / "out")
    assert sum(asked) == 0
