"""Labels of demonstrations: true, of another example, or any that might stand there (Min et al. 2022)."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kosmos import KosmosForConditionalGeneration, KosmosProcessor
from kosmos_eval import tasks
from kosmos_eval.demonstrations import DemonstrationPool
from kosmos_eval.evaluate import evaluate
from kosmos_eval.items import Item
from kosmos_eval.readers import load_items
from kosmos_eval.tasks import Task


def pool_of(data: Path, labels: str, seed: int = 0) -> tuple[DemonstrationPool, list[Item]]:
    task = tasks.load("easy_vqa", [f"demonstrations.labels={labels}", f"demonstrations.seed={seed}"])
    train, test = (load_items(task, data, split) for split in ("train", "test"))
    return DemonstrationPool(task, train, test), test


def test_the_same_examples_say_something_else(toy_data: Path) -> None:
    """Only answers change; random ones are of its question type and nested, shuffled ones are the prompt's own."""
    pools = {labels: pool_of(toy_data, labels) for labels in ("true", "random", "shuffled")}
    known: dict[str, set[str]] = {}
    for example in pools["true"][0].pool:
        known.setdefault(example.group, set()).add(example.answers[0])
    changed: Counter[str] = Counter()
    for item in pools["true"][1]:
        true = pools["true"][0].draw(item, 6)
        for labels in ("random", "shuffled"):
            shown = pools[labels][0].draw(item, 6)
            assert [dataclasses.replace(one, answers=()) for one in shown] == [
                dataclasses.replace(one, answers=()) for one in true
            ]
            changed[labels] += sum(a.answers[0] != b.answers[0] for a, b in zip(shown, true, strict=True))
            if labels == "random":
                assert all(one.answers[0] in known[one.group] for one in shown)
                assert pools[labels][0].draw(item, 3) == shown[:3]
            else:
                assert Counter(one.answers[0] for one in shown) == Counter(one.answers[0] for one in true)
            assert pools[labels][0].draw(item, 6) == shown
        assert pools["shuffled"][0].draw(item, 1) == true[:1]
    total = 6 * len(pools["true"][1])
    assert total / 4 < changed["random"] < total
    assert total / 4 < changed["shuffled"] < total
    item = pools["random"][1][0]
    drawn = {seed: [one.answers for one in pool_of(toy_data, "random", seed)[0].draw(item, 6)] for seed in range(5)}
    assert len({str(answers) for answers in drawn.values()}) > 1


def test_candidates_come_first(toy_data: Path) -> None:
    """Labels are what may be answered: the example's candidates, or those of the item whose own it is."""
    shots = tuple(Item(f"d{n}", {"question": f"{n}?"}, (), ("red",), candidates=("red", "blue")) for n in range(20))
    asked = Item("q", {"question": "?"}, (), ("one",), candidates=("one", "two"), demonstrations=shots)
    bare = dataclasses.replace(asked, demonstrations=tuple(dataclasses.replace(shot, candidates=()) for shot in shots))
    task = tasks.load("concept_binding", ["demonstrations.labels=random"])
    for item, choices in ((asked, {"red", "blue"}), (bare, {"one", "two"})):
        drawn = DemonstrationPool(task, [], [item]).draw(item, 20)
        assert {shot.answers[0] for shot in drawn} == choices


def test_the_prompt_shows_them_and_the_row_says_so(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, toy_data: Path, tmp_path: Path
) -> None:
    said: dict[str, Any] = {}
    for labels in ("true", "random"):
        task: Task = tasks.load("easy_vqa", [f"demonstrations.labels={labels}"])
        rows = evaluate(
            model, processor, task, toy_data, shots=(3,), limit=6, out=tmp_path / labels, with_baselines=False
        )
        assert {row["demonstration_labels"] for row in rows} == {labels}
        (log,) = (tmp_path / labels).rglob("*.jsonl")
        said[labels] = {row["id"]: row for row in map(json.loads, log.read_text().splitlines())}
    for name, row in said["true"].items():
        assert said["random"][name]["demonstrations"] == row["demonstrations"]
    assert [row["prompt"] for row in said["random"].values()] != [row["prompt"] for row in said["true"].values()]


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(ValueError, match="choose one of True, random, shuffled"):
        tasks.load("easy_vqa", ["demonstrations.labels=wrong"])
    with pytest.raises(ValueError, match="no words for the answer of another"):
        tasks.load("picture_names_described", ["demonstrations.labels=shuffled"])
