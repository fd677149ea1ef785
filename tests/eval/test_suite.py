"""The parts of the KOSMOS-1 suite that are made here: they are solvable, unbiased, deterministic, and run end to
end."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from kosmos import KosmosForConditionalGeneration, KosmosProcessor
from kosmos_eval import prompts, suite, tasks
from kosmos_eval.evaluate import evaluate
from kosmos_eval.readers import load_items
from kosmos_eval.suite import raven, rendered


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def made(name: str, toy_data: Path, out: Path, count: int = 6) -> Path:
    source = None
    if name == "described_classes":
        source = out / "source"
        (source / "images").mkdir(parents=True)
        captions = [
            {"image_id": i, "caption": f"a red {shape}"} for i, shape in enumerate(["circle", "triangle", "rectangle"])
        ]
        images = [{"id": i, "file_name": f"{i}.png"} for i in range(3)]
        for i in range(3):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(source / "images" / f"{i}.png")
        (source / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    if name == "concept_binding":
        source = things(out / "source")
    suite.make(name, out / "data", count, source=source)
    return out / "data"


def things(folder: Path) -> Path:
    """Captioned pictures of every colour and shape, in a split for training and one for testing."""
    kinds = [f"a {color} {shape}" for color in ("red", "blue", "green") for shape in ("circle", "square")]
    for start, split in ((0, "train"), (100, "test")):
        (folder / split / "images").mkdir(parents=True)
        numbers = range(start, start + 36)
        images = [{"id": i, "file_name": f"{i}.png"} for i in numbers]
        captions = [{"image_id": i, "caption": kinds[i % len(kinds)]} for i in numbers]
        for i in numbers:
            Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / split / f"images/{i}.png")
        (folder / split / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    return folder


@pytest.mark.parametrize("name", sorted(suite.MAKERS))
def test_every_part_is_deterministic_and_evaluates(
    name: str, model: KosmosForConditionalGeneration, processor: KosmosProcessor, toy_data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(processor, "max_length", 2048)
    first, second = (made(name, toy_data, tmp_path / run) for run in ("one", "two"))
    assert (first / "test.jsonl").read_bytes() == (second / "test.jsonl").read_bytes()
    for image in sorted((first / "images").iterdir()):
        assert image.read_bytes() == (second / "images" / image.name).read_bytes()
    task = tasks.load(name)
    rows = evaluate(model, processor, task, first, out=tmp_path / "out")
    assert rows[0]["n"] == len(lines(first / "test.jsonl"))
    blind = rows[0]["baselines"]
    assert blind, "nothing to beat"
    assert task.chance is None or blind["chance"] == task.chance


def test_raven_rules_hold_in_every_row() -> None:
    import random

    for number in range(200):
        grid, rules = raven.puzzle(random.Random(number))
        for name, rule in rules.items():
            rows = [[grid[3 * row + i][name] for i in range(3)] for row in range(3)]
            steps = {tuple(np.diff(row)) for row in rows}
            if rule == "constant":
                assert steps == {(0, 0)}
            elif rule == "progression":
                assert steps in ({(1, 1)}, {(-1, -1)})
            else:
                assert len({frozenset(row) for row in rows}) == 1
                assert all(len(set(row)) == 3 for row in rows)


def test_raven_candidates_tell_nothing_without_the_grid() -> None:
    """Voting for the most frequent value of each attribute, the shortcut that RAVEN had, leaves all eight
    candidates."""
    import random

    for number in range(100):
        rng = random.Random(number)
        grid, _ = raven.puzzle(rng)
        options, right = raven.candidates(grid[-1], rng)
        assert options[right] == grid[-1]
        assert len({tuple(sorted(option.items())) for option in options}) == 8
        for name in raven.ATTRIBUTES:
            counts = Counter(option[name] for option in options)
            assert set(counts.values()) in ({8}, {4})


def test_raven_answers_are_the_candidate_with_the_most_likely_yes(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, toy_data: Path, tmp_path: Path
) -> None:
    data = made("raven", toy_data, tmp_path, count=3)
    evaluate(model, processor, "raven", data, out=tmp_path / "out")
    for record in lines(tmp_path / "out/samples/model/raven-0shot-image+text.jsonl"):
        assert len(record["scores"]) == 8
        assert record["prediction"] == str(int(np.argmax(record["scores"])) + 1)
        assert record["prompt"].startswith("Here are eight images:" + "<image>" * 8 + "The following image is:<image>")


def test_six_candidates_as_in_iq50_have_their_own_chance(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, toy_data: Path, tmp_path: Path
) -> None:
    data = made("raven", toy_data, tmp_path, count=2)
    items = [
        item | {"candidate_images": item["candidate_images"][:6], "answers": ["6"]}
        for item in lines(data / "test.jsonl")
    ]
    (data / "test.jsonl").write_text("\n".join(map(json.dumps, items)))
    (row, *_) = evaluate(model, processor, "raven", data)
    assert row["baselines"] == {"chance": pytest.approx(1 / 6)}
    (data / "test.jsonl").write_text(json.dumps(items[0] | {"answers": ["7"]}))
    with pytest.raises(ValueError, match="its answer '7' is none of the 6 candidates"):
        evaluate(model, processor, "raven", data)


def test_concepts_are_settled_by_the_demonstrations_and_by_nothing_else(toy_data: Path, tmp_path: Path) -> None:
    """Looking up the shared property solves every item; the last word, the more frequent one and the order of the
    candidates solve half of them."""
    items = lines(made("concept_binding", toy_data, tmp_path, count=300) / "test.jsonl")
    kinds = [(color, shape) for color in ("red", "blue", "green") for shape in ("circle", "square")]
    last, first_candidate = 0, 0
    for item in items:
        place = ("color", "shape").index(item["group"])

        def what(shown: dict[str, Any], place: int = place) -> str:
            return kinds[int(Path(shown["images"][0]).stem.split("-")[1]) % len(kinds)][place]

        words = [shown["answers"][0] for shown in item["demonstrations"]]
        meaning = {what(shown): word for shown, word in zip(item["demonstrations"], words, strict=True)}
        assert len(meaning) == 2
        assert meaning[what(item)] == item["answers"][0]
        assert set(item["candidates"]) == set(words)
        assert all(len({*words[i : i + 2]}) == 2 for i in range(0, 8, 2))
        assert len({shown["images"][0] for shown in item["demonstrations"]}) == 8
        assert item["images"][0].startswith("test-")
        last += words[-1] == item["answers"][0]
        first_candidate += item["candidates"][0] == item["answers"][0]
    assert 120 < last < 180
    assert 120 < first_candidate < 180


def test_own_demonstrations_stand_in_the_prompt(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, toy_data: Path, tmp_path: Path
) -> None:
    data = made("concept_binding", toy_data, tmp_path, count=4)
    rows = evaluate(model, processor, "concept_binding", data, shots=(0, 2, 4), out=tmp_path / "out")
    assert {row["baselines"]["chance"] for row in rows if row["model"] == "model"} == {0.5}
    for count in (2, 4):
        for record in lines(tmp_path / f"out/samples/model/concept_binding-{count}shot-image+text.jsonl"):
            (item,) = [one for one in lines(data / "test.jsonl") if one["id"] == record["id"]]
            said = [shown["answers"][0] for shown in item["demonstrations"][:count]]
            asked = "<image>Question: what is this called? Answer:"
            assert record["prompt"] == "".join(f"{asked} {word}\n" for word in said) + asked
            assert record["shots"] == count
    with pytest.raises(ValueError, match="12 demonstrations wanted, but item 00000 has 8 usable ones"):
        evaluate(model, processor, "concept_binding", data, shots=(12,))


def test_published_raven_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "raven").mkdir()
    panels = np.arange(16, dtype=np.uint8)[:, None, None] * np.ones((16, 160, 160), np.uint8)
    np.savez(tmp_path / "raven/RAVEN_0_test.npz", image=panels, target=5)
    suite.make("raven", tmp_path / "out", source=tmp_path / "raven")
    (item,) = lines(tmp_path / "out/test.jsonl")
    assert item["answers"] == ["6"]
    assert Image.open(tmp_path / "out/images" / item["candidate_images"][5]).getpixel((0, 0)) == 13


def test_rendered_text_fits_and_differs() -> None:
    short, long = rendered.render("funny"), rendered.render("a " * 100 + "bad film")
    for picture in (short, long):
        pixels = np.asarray(picture)
        assert (pixels[:2] == 255).all()
        assert (pixels[-2:] == 255).all()
        assert (pixels < 128).any()
    with pytest.raises(ValueError, match="does not fit"):
        rendered.render("word " * 2000)


def test_chain_of_thought_reads_its_own_rationale(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, toy_data: Path, tmp_path: Path
) -> None:
    data = made("rendered_text", toy_data, tmp_path)
    task = tasks.load("rendered_text_cot", ["rationale_tokens=5"])
    evaluate(model, processor, task, data, out=tmp_path / "out")
    for record in lines(tmp_path / "out/samples/model/rendered_text_cot-0shot-image+text.jsonl"):
        assert (
            record["prompt"] == f"<image>{record['rationale']} Question: what is the sentiment of the opinion? Answer:"
        )


@pytest.mark.parametrize("context", ["image+text", "shuffled", "text-only"])
@pytest.mark.parametrize("has_rationales", [True, False])
def test_few_shot_chain_of_thought(
    model: KosmosForConditionalGeneration,
    processor: KosmosProcessor,
    toy_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    context: str,
    has_rationales: bool,
) -> None:
    """Both prompts with their demonstrations, as they are printed and recorded; a rationale is shown where there is
    one, and nothing of the asked item's own."""
    data = made("rendered_text", toy_data, tmp_path)
    monkeypatch.setattr(processor, "max_length", 1000)
    shown = {item["images"][0]: item for item in lines(data / "train.jsonl")}
    assert all(item["rationale"] == f"It says: {item['text']}" for item in shown.values())
    if not has_rationales:
        bare = [{key: value for key, value in item.items() if key != "rationale"} for item in shown.values()]
        (data / "train.jsonl").write_text("\n".join(map(json.dumps, bare)))
    asked = [item | {"rationale": "leaked"} for item in lines(data / "test.jsonl")]
    (data / "test.jsonl").write_text("\n".join(map(json.dumps, asked)))
    printed = io.StringIO()
    task = tasks.load("rendered_text_cot", ["rationale_tokens=5"])
    settings = {"shots": (2,), "contexts": (context,), "console": Console(file=printed, width=2000)}
    evaluate(model, processor, task, data, out=tmp_path / "out", **settings)
    records = lines(tmp_path / f"out/samples/model/rendered_text_cot-2shot-{context}.jsonl")
    mark = "" if context == "text-only" else "<image>"
    question = " Question: what is the sentiment of the opinion? Answer:"
    for number, record in enumerate(records):
        drawn = [item for key in record["demonstrations"] for item in shown.values() if item["id"] == key]
        first = "".join(f"{mark}Introduce this picture in detail: {item['rationale']}\n" for item in drawn)
        second = ""
        for item in drawn:
            second += f"{mark}{item['rationale'] if has_rationales else ''}{question} {item['answers'][0]}\n"
        assert record["prompt"] == f"{second}{mark}{record['rationale']}{question}"
        assert record["shots"] == 2
        files = [image["file"] for image in record["images"]]
        own = asked[number]["images"][0]
        if context != "text-only":
            assert files[:2] == [item["images"][0] for item in drawn]
            assert (files[2] == own) == (context == "image+text")
        if number == 0:
            stages = [f"{first if has_rationales else ''}{mark}Introduce this picture in detail:"]
            stages.append(f"{second}{mark}{{rationale}}{question}")
            for name, text in zip(("first", "second"), stages, strict=True):
                assert f"  {name} prompt: {text!r}\n" in printed.getvalue()


def test_the_second_prompt_of_a_chain_loses_what_the_first_lost(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A field that is too long is shortened in both."""
    item = {"page": "red blue green " * 60, "answers": ["red"]}
    (tmp_path / "test.jsonl").write_text(json.dumps(item))
    task = tasks.Task(
        "chain", tasks.DatasetFiles("jsonl", "{split}.jsonl"),
        tasks.Prompt("{page} {rationale} Question: what color is it? Answer:", shorten="page"),
        metrics=["f1"], rationale="{page} is it?", rationale_tokens=4, name="chain",
    )  # fmt: skip
    monkeypatch.setattr(processor, "max_length", 80)
    evaluate(model, processor, task, tmp_path, out=tmp_path / "out")
    (record,) = lines(tmp_path / "out/samples/model/chain-0shot-image+text.jsonl")
    assert record["shortened"]
    assert 10 < record["prompt"].count("green") + record["prompt"].count("blue") < 60


@pytest.mark.parametrize("said", ["grey", "gray"])
def test_grey_is_gray(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, tmp_path: Path, said: str
) -> None:
    """The published sets say grey, others gray: both load, and either answer counts."""
    (tmp_path / "test.jsonl").write_text(json.dumps({"object": "elephant", "answers": [said]}))
    task = tasks.load("memory_color", ["decoding.candidates=gray,grey"])
    rows = evaluate(model, processor, task, tmp_path, out=tmp_path / "out")
    (record,) = lines(tmp_path / "out/samples/model/memory_color-0shot-image+text.jsonl")
    assert record["answers"] == [said, {"grey": "gray", "gray": "grey"}[said]]
    assert rows[0]["value"] == 1.0
    assert {"gray", "grey"} < set(tasks.load("memory_color").decoding.candidates)


def test_described_classes_name_their_general_category(toy_data: Path, tmp_path: Path) -> None:
    data = made("described_classes", toy_data, tmp_path)
    task = tasks.load("described_classes")
    (item, *_) = load_items(task, data, "test")
    assert prompts.build(task, item).text.endswith("what is the name of the shape in the picture? Answer:")


def test_a_cloze_scores_what_follows_the_candidate(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, tmp_path: Path
) -> None:
    """GLM's cloze: the words after the blank decide too, so two orders of the same words score differently."""
    item = {"premise": "is it", "rest": "a red circle", "candidates": ["yes", "no"], "answers": ["yes"]}
    (tmp_path / "test.jsonl").write_text(json.dumps(item))
    task = tasks.Task(
        "cloze", tasks.DatasetFiles("jsonl", "{split}.jsonl"), tasks.Prompt("{premise}", " {answer} {rest}"),
        decoding=tasks.Decoding("rank"), metrics=["accuracy"], name="cloze",
    )  # fmt: skip
    evaluate(model, processor, task, tmp_path, out=tmp_path / "out")
    (record,) = lines(tmp_path / "out/samples/model/cloze-0shot-image+text.jsonl")
    assert record["prediction"] in ("yes", "no")
    words = tasks.Task(
        "words", task.dataset, tasks.Prompt("{premise}"), decoding=task.decoding, metrics=["accuracy"], name="words"
    )
    evaluate(model, processor, words, tmp_path, out=tmp_path / "out")
    (bare,) = lines(tmp_path / "out/samples/model/words-0shot-image+text.jsonl")
    assert all(full < alone for full, alone in zip(record["scores"], bare["scores"], strict=True))


def test_unknown_part_existing_data_and_missing_source(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'raven'"):
        suite.make("ravens", tmp_path / "a")
    suite.make("memory_color", tmp_path / "b", 3)
    with pytest.raises(ValueError, match="exists"):
        suite.make("memory_color", tmp_path / "b", 3)
    with pytest.raises(ValueError, match="needs --source"):
        suite.make("described_classes", tmp_path / "c")
