"""Recipe ``swaps``: steps are right, held-out problems stay out, and documents are what the tasks show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kosmos_data import Corpus, Document, recipes
from kosmos_data.recipes.swaps import Options, Problem
from kosmos_eval import prompts, tasks
from kosmos_eval.readers import load_items

SMALL = ["documents=60", "items=20", "lengths=[2,3,8]"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("swaps") / "corpus"
    report = recipes.make("swaps", folder, SMALL)
    assert report["documents"] == {"answers": 60, "steps": 60, "solved": 60}
    return folder


def documents(made: Path, kind: str) -> list[Document]:
    corpus = Corpus(str(made / kind))
    return sorted((corpus[at] for at in range(len(corpus))), key=lambda one: int(one.key.split("-")[1]))


def rows(made: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (made / f"eval/{name}.jsonl").read_text().splitlines()]


def shown(document: Document) -> str:
    return "".join(segment.text for segment in document.segments)  # type: ignore[union-attr]


def test_a_problem_by_hand() -> None:
    problem = Problem("Ann", (("Ann", "Ben"), ("Cem", "Dan"), ("Dan", "Ben"), ("Ann", "Ben")))
    assert (
        problem.question == "Ann has the ball. Ann and Ben swap. Cem and Dan swap. Dan and Ben swap. Ann and Ben swap."
    )
    assert problem.rationale == "Ann and Ben: Ben. Cem and Dan: Ben. Dan and Ben: Dan. Ann and Ben: Dan."
    assert problem.answer == "Dan"


def solve(question: str) -> str:
    """The same by keeping what everybody holds."""
    first, *swaps = question.rstrip(".").split(". ")
    holds = dict.fromkeys(["Ann", "Ben", "Cem", "Dan", "Eve"], "nothing") | {first.split()[0]: "ball"}
    for swap in swaps:
        one, _, two, _ = swap.split()
        holds[one], holds[two] = holds[two], holds[one]
    return next(name for name, what in holds.items() if what == "ball")


def test_answers_are_right_and_nothing_held_out_is_trained_on(made: Path) -> None:
    asked = {name: rows(made, name) for name in ("train", "steps_2", "steps_3", "steps_8")}
    for name, found in asked.items():
        assert len({row["question"] for row in found}) == len({row["id"] for row in found}) == 20
        for row in found:
            assert row["answers"] == [solve(row["question"])]
            assert row["rationale"].endswith(f": {row['answers'][0]}.")
            length = row["question"].count("swap")
            assert length == int(name[6:]) if name != "train" else 1 <= length <= 6
            assert row["rationale"].count(":") == length
    trained = {
        line.removeprefix("Question: ").split(" Answer:")[0]
        for one in documents(made, "answers")
        for line in shown(one).splitlines()
    }
    assert len(trained) > 100
    assert max(question.count("swap") for question in trained) == 6
    held_out = {row["question"] for name in ("steps_2", "steps_3", "steps_8") for row in asked[name]}
    assert not held_out & trained
    assert not held_out & {row["question"] for row in asked["train"]}


def test_documents_have_the_words_of_the_prompts(made: Path) -> None:
    """A document of each kind is what the tasks show as demonstrations, to the letter; loss is on what is written."""
    three = {kind: documents(made, kind) for kind in ("answers", "steps", "solved")}
    plain, chain = tasks.load("ball_swaps"), tasks.load("ball_swaps_cot")
    for number, document in enumerate(three["solved"][:10]):
        lines = [line for line in shown(document).split("\n") if line]
        asked = [line.split(" Steps: ")[0].removeprefix("Question: ") for line in lines]
        steps = [line.split(" Steps: ")[1].split(" Answer:")[0] for line in lines]
        solved = [
            {"question": one, "rationale": two, "answers": [solve(one)]} for one, two in zip(asked, steps, strict=True)
        ]
        folder = made / "shown"
        folder.mkdir(exist_ok=True)
        text = "".join(json.dumps({"id": str(at), **row}) + "\n" for at, row in enumerate(solved))
        for split in ("train", "steps_4"):
            (folder / f"{split}.jsonl").write_text(text)
        items = load_items(chain, folder, "train")
        last = items[-1]
        first = prompts.build_chain(chain, last, items[:-1], "image+text")
        second = prompts.with_rationale(first.then or first, steps[-1])
        assert shown(document) == f"{second.text} {solve(asked[-1])}\n"
        assert shown(three["steps"][number]) == f"{first.text} {steps[-1]}\n"
        direct = prompts.build(plain, last, items[:-1])
        assert shown(three["answers"][number]) == f"{direct.text} {solve(asked[-1])}\n"
    for kind, learnt in (("answers", 1), ("steps", 1), ("solved", 2)):
        for document in three[kind]:
            wanted = [segment.text for segment in document.segments if segment.supervised]  # type: ignore[union-attr]
            assert len(wanted) == 3 * learnt
            assert not any("Question" in text or "Answer" in text or "swap" in text for text in wanted)


def test_the_same_seed_draws_the_same(made: Path, tmp_path: Path) -> None:
    recipes.make("swaps", tmp_path / "again", SMALL)
    recipes.make("swaps", tmp_path / "other", [*SMALL, "seed=1"])
    for kind in ("answers", "steps", "solved"):
        assert documents(made, kind) == documents(tmp_path / "again", kind)
        assert documents(made, kind) != documents(tmp_path / "other", kind)
    assert rows(made, "steps_3") == rows(tmp_path / "again", "steps_3")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("people=2", "people=2 must be from 3 to 8"),
        ("people=9", "people=9"),
        ("documents=0", "documents=0 must be at least 1"),
        ("most=0", "most=0"),
        ("lengths=[1]", "there are 100 problems of 1 swaps, of which one in 5 is held out: too few for items=200"),
    ],
)
def test_numbers_that_cannot_be(change: str, says: str) -> None:
    name, _, value = change.partition("=")
    with pytest.raises(ValueError, match=says.replace("[", r"\[")):
        Options(**{name: json.loads(value)})
