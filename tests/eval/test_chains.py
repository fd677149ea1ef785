"""Chains of thought: votes of sampled rationales against an oracle by hand, resumed, on two ranks, and the control."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from kosmos import KosmosForConditionalGeneration, KosmosProcessor
from kosmos_eval import chains, prompts, tasks
from kosmos_eval.evaluate import evaluate
from kosmos_eval.items import Item, stable_hash
from kosmos_eval.model import EvaluatedModel, in_order
from kosmos_eval.prompts import Pair
from kosmos_eval.readers import load_items
from kosmos_eval.runner import Runner
from kosmos_eval.sample_log import Rank
from kosmos_eval.tasks import Decoding, Task

COLORS = ["red", "blue", "green", "black", "yes", "no"]


def chain_task(*changes: str) -> Task:
    """Questions about colours, whose answer is chosen behind a few free words."""
    wording = "prompt.template=<image>{rationale} Question: {question} Answer:"
    method = ["decoding.method=rank", f"decoding.candidates={','.join(COLORS)}", "metrics=accuracy"]
    first = ["rationale=<image>Question: {question}", "rationale_tokens=4"]
    return tasks.load("easy_vqa", [*first, wording, *method, *changes])


def sampled(*changes: str) -> Task:
    """Four hot samples an item, so that votes are split."""
    return chain_task("chain.samples=4", "chain.temperature=4.0", *changes)


def records(out: Path) -> list[dict[str, Any]]:
    (path,) = out.rglob("*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_scores(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All but the likelihoods, whose last digits depend on the batch."""
    return [{key: value for key, value in record.items() if key != "scores"} for record in found]


@pytest.mark.parametrize(
    ("answers", "wins"),
    [(["a"], 0), (["b", "a", "a"], 1), (["a", "b", "b", "a"], 0), (["c", "b", "a", "b"], 1), (["b", "a", "a "], 1)],
)
def test_the_commonest_wins_and_of_two_the_first(answers: list[str], wins: int) -> None:
    assert chains.vote(answers) == wins


@torch.no_grad()
def by_hand(runner: Runner, task: Task, item: Item, seed: int) -> list[tuple[str, str]]:
    """Each rationale of an item, written alone, and the likeliest candidate behind it."""
    model, found = EvaluatedModel(runner, batch_rows=1), []
    first = prompts.build_chain(task, item, [], "image+text")
    for number in range(4):
        key = stable_hash("rationale", seed, task.name, f"{item.id} {number}")
        (text,) = in_order(model.generate([first], Decoding("sample", 4, temperature=4.0), [key]))
        second = prompts.with_rationale(prompts.build(task, item), text)
        scores = [in_order(model.log_likelihoods([Pair(second, f" {word}")]))[0].nats for word in COLORS]
        found.append((text, COLORS[scores.index(max(scores))]))
    return found


def test_self_consistency_equals_asking_one_by_one(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, toy_data: Path, tmp_path: Path
) -> None:
    """Rationales, answers, winner and its prompt of each item, in whatever batches."""
    task = sampled()
    items = {item.id: item for item in load_items(task, toy_data, task.split)}
    for rows in (128, 3):
        evaluate(model, processor, task, toy_data, seed=7, limit=8, out=tmp_path / str(rows), batch_rows=rows)
    together, few = records(tmp_path / "128"), records(tmp_path / "3")
    assert without_scores(together) == without_scores(few)
    runner, split = Runner(model, processor), 0
    for record in together:
        expected = by_hand(runner, task, items[record["id"]], 7)
        assert [(one["rationale"], one["prediction"]) for one in record["samples"]] == expected
        winner = Counter(answer for _, answer in expected).most_common(1)[0][0]  # of equal counts the first that came
        assert record["prediction"] == winner
        assert record["rationale"] == next(text for text, answer in expected if answer == winner)
        assert f"{record['rationale']} Question: " in record["prompt"]
        split += len({answer for _, answer in expected}) > 1
    assert split > 2
    assert len({one["rationale"] for record in together for one in record["samples"]}) > len(together)


def test_two_ranks_equal_one(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, toy_data: Path, tmp_path: Path
) -> None:
    one = evaluate(model, processor, sampled(), toy_data, out=tmp_path / "one")
    for index in (1, 0):
        two = evaluate(model, processor, sampled(), toy_data, out=tmp_path / "two", rank=Rank(index, 2))
    assert without_scores(records(tmp_path / "two")) == without_scores(records(tmp_path / "one"))
    assert [(row["metric"], row["value"]) for row in two] == [(row["metric"], row["value"]) for row in one]


def test_votes_are_resumed_and_other_settings_asked_anew(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, toy_data: Path, tmp_path: Path, asked: list[int]
) -> None:
    """What a killed run wrote down is taken over, and only for the very same chains."""
    evaluate(model, processor, sampled(), toy_data, out=tmp_path)
    (path,), whole = tmp_path.rglob("*.jsonl"), records(tmp_path)
    path.write_text("".join(json.dumps(one) + "\n" for one in whole[:-2]))
    asked.clear()
    evaluate(model, processor, sampled(), toy_data, out=tmp_path)
    assert asked == [2 * 4]
    assert without_scores(records(tmp_path)) == without_scores(whole)
    for change in ("chain.samples=2", "chain.temperature=1.0", "chain.of=another", "rationale_tokens=3"):
        asked.clear()
        evaluate(model, processor, sampled(change), toy_data, out=tmp_path)
        assert asked == [len(whole) * (2 if "samples" in change else 4)]


def test_one_greedy_rationale_is_no_vote(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, toy_data: Path, tmp_path: Path
) -> None:
    evaluate(model, processor, chain_task(), toy_data, out=tmp_path)
    assert all("samples" not in record and record["rationale"] for record in records(tmp_path))


def test_the_control_reads_what_was_written_to_another_item(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, toy_data: Path, tmp_path: Path
) -> None:
    """The own question, behind the very words that the model writes to the other item's first prompt."""
    for of in ("item", "another"):
        evaluate(model, processor, chain_task(f"chain.of={of}"), toy_data, out=tmp_path / of)
    own = {record["id"]: record for record in records(tmp_path / "item")}
    items = load_items(chain_task(), toy_data, "test")
    other = chains.another(items, 0, "easy_vqa")
    assert sorted(one.id for one in other.values()) == sorted(own)
    changed = 0
    for record in records(tmp_path / "another"):
        assert other[record["id"]].id != record["id"]
        assert record["rationale"] == own[other[record["id"]].id]["rationale"]
        question = own[record["id"]]["prompt"].partition(" Question: ")[2]
        assert record["prompt"] == f"<image>{record['rationale']} Question: {question}"
        changed += record["rationale"] != own[record["id"]]["rationale"]
    assert changed > len(own) / 2
    with pytest.raises(ValueError, match=r"chain.of=another needs two items, the split has 1"):
        chains.another(items[:1], 0, "easy_vqa")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("chain.samples=0", "chain.samples 0 must be at least 1"),
        ("chain.temperature=0", "chain.temperature 0.0 must be above 0"),
        ("chain.temperature=.nan", "chain.temperature nan must be above 0"),
        ("chain.sample=3", "samples"),
        ("chain.of=other", "another"),
        ("rationale=", "needs a first prompt; give rationale"),
        ("decoding.candidates=yes,no metrics=roc_auc", "roc_auc needs one confidence an item"),
        ("decoding.method=likelihood metrics=bits_per_byte", "method likelihood gives no answers to vote on"),
    ],
)
def test_chains_that_cannot_be_asked_for(change: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        chain_task("chain.samples=5", *change.split(" "))
