"""The evaluator end to end on a toy data set: rows, contexts, prompts, baselines, and what users get wrong."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from PIL import Image
from rich.console import Console

from kosmos import KosmosForConditionalGeneration, KosmosProcessor, train_tokenizer
from kosmos.segments import Phrase, Text
from kosmos_eval import results, tasks
from kosmos_eval.evaluate import evaluate
from kosmos_eval.runner import Runner
from kosmos_eval.tasks import Task

Model = KosmosForConditionalGeneration


def test_rows_hold_the_contract(
    model: Model, processor: KosmosProcessor, toy_data: Path, task: Task, tmp_path: Path
) -> None:
    rows = evaluate(
        model, processor, task, toy_data, shots=(0, 2), contexts=("image+text", "shuffled"), name="toy", out=tmp_path
    )
    for row in rows:
        for key in ("task", "model", "shots", "context", "metric", "value", "low", "high", "n"):
            assert key in row, row
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
    jsonschema.validate(rows, json.loads((Path(results.__file__).parent / "results.schema.json").read_text()))
    mine = [row for row in rows if row["model"] == "toy" and row["question_type"] is None]
    assert [(row["shots"], row["context"]) for row in mine] == [
        (0, "image+text"), (0, "shuffled"), (2, "image+text"), (2, "shuffled")
    ]  # fmt: skip
    assert {row["question_type"] for row in rows} == {None, "color", "yes/no"}
    assert all(row["normaliser"] == "official" and row["split"] == "test" for row in mine)
    assert set(mine[0]["baselines"]) == {"majority answer", "question only", "shuffled"}


def test_baselines_by_hand(model: Model, processor: KosmosProcessor, toy_data: Path, task: Task) -> None:
    """Half of the answers are "yes" and every colour is as frequent: majority 1/2, question-only 1/2 + 1/8."""
    rows = evaluate(model, processor, task, toy_data)
    values = {row["model"]: row["value"] for row in rows if row.get("baseline") and row["question_type"] is None}
    assert values == pytest.approx({"majority answer": 0.5, "question only": 0.625})


def test_a_grounded_answer_is_logged_with_its_boxes(
    model: Model, processor: KosmosProcessor, toy_data: Path, task: Task, tmp_path: Path, monkeypatch: Any
) -> None:
    """The prompt ends with ``<grounding>``, the score is of the words, the log has boxes of the whole picture."""
    tokenizer = train_tokenizer(["Question: what color is it? Answer: blue"] * 9, vocab_size=120, grounding=True)
    mine = KosmosProcessor(processor.image_processor, tokenizer, num_image_tokens=4, max_length=256)
    written = mine.encode([Text("blue", boxes=(Phrase(0, 4, ((0.0, 0.5, 0.5, 1.0),)),))]).ids[1:]
    monkeypatch.setattr(Runner, "write", lambda self, state, logits, *_: [written] * len(logits))
    wider = copy.deepcopy(model)
    wider.resize_token_embeddings(len(tokenizer))
    wider.config.image_token_id = wider.model.config.image_token_id = mine.image_slot_id
    asked = replace(task, prompt=replace(task.prompt, grounding=True))
    evaluate(wider, mine, asked, toy_data, limit=2, out=tmp_path, with_baselines=False)
    record = json.loads((tmp_path / "samples/model/easy_vqa-0shot-image+text.jsonl").read_text().splitlines()[0])
    assert record["prompt"].endswith("Answer:<grounding>")
    assert record["prediction"] == "blue"
    boxes = [[0.5 / 32, 16.5 / 32, 15.5 / 32, 31.5 / 32]]
    assert record["boxes"] == [{"phrase": [0, 4], "boxes": boxes}]


def test_log_holds_the_exact_prompt(
    model: Model, processor: KosmosProcessor, toy_data: Path, task: Task, tmp_path: Path
) -> None:
    evaluate(model, processor, task, toy_data, shots=(2,), out=tmp_path)
    lines = (tmp_path / "samples/model/easy_vqa-2shot-image+text.jsonl").read_text().splitlines()
    assert len(lines) == 24
    record = json.loads(lines[0])
    assert record["prompt"].count("<image>Question: ") == 3
    assert record["prompt"].endswith("<image>Question: what color is it? Answer:")
    assert record["prompt"].count("\n") == 2
    assert len(record["images"]) == 3
    assert record["images"][-1]["file"] == "100.png"
    assert len(set(record["demonstrations"])) == 2
    assert record["metrics"].keys() == {"vqa"}
    assert not list((tmp_path / "samples/model").glob("*part*"))


@pytest.mark.parametrize(
    ("turn_end", "separator", "shots", "between", "at_a_line_end"),
    [
        ("line", None, 2, "\n", True),
        ("eos", None, 2, "</s>", False),
        ("eos", "\n", 2, "\n", True),
        ("eos", "\n", 0, "", False),
        ("line", "</s>", 2, "</s>", True),
    ],
)
def test_answers_end_as_the_demonstrations_do(
    model: Model, processor: KosmosProcessor, toy_data: Path, task: Task, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, turn_end: str, separator: str | None, shots: int, between: str,
    at_a_line_end: bool,
) -> None:  # fmt: skip
    """Between demonstrations stands what ends the checkpoint's answers, unless the task names it; it ends them too."""
    processor, model = copy.deepcopy(processor), copy.deepcopy(model)
    processor.end_turns(turn_end)
    model.generation_config.update(**processor.writing_rules())
    seen: list[frozenset[int]] = []
    write = Runner.write
    monkeypatch.setattr(Runner, "write", lambda *passed: seen.append(frozenset(passed[-1])) or write(*passed))
    task = replace(task, prompt=replace(task.prompt, separator=separator))
    evaluate(model, processor, task, toy_data, shots=(shots,), out=tmp_path)
    [log] = (tmp_path / "samples/model").glob("*.jsonl")
    for record in map(json.loads, log.read_text().splitlines()):
        first, *rest = record["prompt"].split("<image>")[1:]
        assert len(rest) == shots
        assert all(text.endswith(between) for text in [first, *rest][:shots])
    eos = processor.tokenizer.eos_token_id
    assert set(seen) == {frozenset([eos, *(processor.line_end_ids() if at_a_line_end else [])])}


def test_first_prompt_and_its_ids_are_printed(
    model: Model, processor: KosmosProcessor, toy_data: Path, task: Task
) -> None:
    console = Console(record=True, width=200)
    evaluate(model, processor, task, toy_data, console=console)
    text = console.export_text()
    assert "'<image>Question: what color is it? Answer:'" in text
    begin, slot, *_, end = processor.image_token_ids()
    assert f"0 {begin} {slot}×{processor.num_image_tokens} {end} " in text


@pytest.mark.parametrize("context", ["text-only", "none"])
def test_contexts_without_images_never_encode_one(
    model: Model,
    processor: KosmosProcessor,
    toy_data: Path,
    task: Task,
    context: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model.model, "encode", lambda *_, **__: pytest.fail("an image was encoded"))
    evaluate(model, processor, task, toy_data, shots=(0, 2), contexts=(context,), out=tmp_path)
    record = json.loads((tmp_path / f"samples/model/easy_vqa-0shot-{context}.jsonl").read_text().splitlines()[0])
    question = "what color is it?" if context == "text-only" else ""
    assert record["prompt"] == f"Question: {question} Answer:"


def test_shuffled_gives_every_item_another_image(
    model: Model, processor: KosmosProcessor, toy_data: Path, task: Task, tmp_path: Path
) -> None:
    evaluate(model, processor, task, toy_data, contexts=("image+text", "shuffled"), out=tmp_path)
    own, other = (
        [
            json.loads(line)
            for line in (tmp_path / f"samples/model/easy_vqa-0shot-{context}.jsonl").read_text().splitlines()
        ]
        for context in ("image+text", "shuffled")
    )
    for first, second in zip(own, other, strict=True):
        assert first["prompt"] == second["prompt"]
        assert first["images"][0]["sha256"] != second["images"][0]["sha256"]


def test_training_mode_is_left_alone(model: Model, processor: KosmosProcessor, toy_data: Path, task: Task) -> None:
    model.train()
    try:
        evaluate(model, processor, task, toy_data, limit=2, with_baselines=False)
        assert model.training
    finally:
        model.eval()


def test_too_long_prompts_lose_demonstrations_loudly(
    model: Model,
    processor: KosmosProcessor,
    toy_data: Path,
    task: Task,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processor, "max_length", 90)
    console = Console(record=True, width=200)
    rows = evaluate(model, processor, task, toy_data, shots=(8,), out=tmp_path, console=console)
    assert rows[0]["items_with_fewer_shots"] > 0
    assert "got fewer than 8 demonstrations" in console.export_text()
    monkeypatch.setattr(processor, "max_length", 12)
    with pytest.raises(ValueError, match="prompt and answer take"):
        evaluate(model, processor, task, toy_data)


def test_the_room_of_one_item_s_long_answer_costs_the_others_nothing(
    model: Model, processor: KosmosProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prompt of an item does not depend on which others are evaluated with it."""
    for split, start in (("test", 0), ("train", 10)):
        lines = [{"id": f"{split}{i}", "question": f"is it {i}?", "answers": ["yes"], "candidates": ["yes", "no" * end]}
                 for i, end in ((start, 1), (start + 1, 15))]  # fmt: skip
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    task = Task(
        "t", tasks.DatasetFiles("jsonl", "{split}.jsonl"), tasks.Prompt("Question: {question} Answer:"),
        demonstrations=tasks.Demonstrations("train"), decoding=tasks.Decoding("rank"), metrics=["accuracy"], name="t",
    )  # fmt: skip
    monkeypatch.setattr(processor, "max_length", 50)
    rows = evaluate(model, processor, task, tmp_path, shots=(1,), out=tmp_path / "out")
    log = (tmp_path / "out/samples/model/t-1shot-image+text.jsonl").read_text().splitlines()
    assert [json.loads(line)["shots"] for line in log] == [1, 0]
    assert rows[0]["items_with_fewer_shots"] == 1


def test_a_rationale_leaves_room_for_the_question_behind_it(
    model: Model, processor: KosmosProcessor, toy_data: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second prompt is the longer one; that it does not fit shows before anything is answered."""
    template = "<image>{rationale}" + " Question: {question}" * 3 + " Answer:"
    task = tasks.load("easy_vqa", ["rationale=<image>is it?", "rationale_tokens=8", f"prompt.template={template}"])
    evaluate(model, processor, task, toy_data, limit=4)
    asked.clear()
    monkeypatch.setattr(processor, "max_length", 40)
    with pytest.raises(ValueError, match="prompt and answer take"):
        evaluate(model, processor, task, toy_data, limit=4)
    assert not asked


def test_an_answer_that_cannot_be_chosen_is_an_error(model: Model, processor: KosmosProcessor, tmp_path: Path) -> None:
    item = {"first": "bus", "second": "egg", "answers": ["true"]}
    (tmp_path / "test.jsonl").write_text(json.dumps(item))
    with pytest.raises(ValueError, match=r"its answer 'true' is none of the 2 candidates \(Yes, No\)"):
        evaluate(model, processor, "relative_size", tmp_path)


def test_a_task_without_training_data_is_compared_with_its_best_constant(
    model: Model, processor: KosmosProcessor, tmp_path: Path
) -> None:
    lines = [{"question": f"is it {i}?", "answers": [answer]} for i, answer in enumerate(["red", "red", "blue"])]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, lines)))
    task = Task("t", tasks.DatasetFiles("jsonl", "{split}.jsonl"), tasks.Prompt("{question}"), metrics=["f1"], name="t")
    rows = evaluate(model, processor, task, tmp_path)
    assert rows[0]["baselines"] == {"constant answer": pytest.approx(2 / 3)}


def test_captions_are_scored_as_a_whole(model: Model, processor: KosmosProcessor, toy_data: Path) -> None:
    rows = evaluate(model, processor, "easy_vqa_caption", toy_data, shots=(0, 2))
    assert [row["metric"] for row in rows[:2]] == ["cider", "bleu_1"]
    assert rows[0]["n"] == 12
    assert {row["model"] for row in rows} == {"model", "majority answer"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contexts": ("images",)}, "unknown context 'images'"),
        ({"shots": (-1,)}, "cannot be negative"),
        ({"shots": (100,)}, "100 demonstrations wanted"),
        ({"limit": 0}, "at least 1"),
        ({"batch_rows": 0}, "at least 1"),
    ],
)
def test_wrong_options(
    model: Model, processor: KosmosProcessor, toy_data: Path, task: Task, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(model, processor, task, toy_data, **options)


def test_missing_images_are_counted(model: Model, processor: KosmosProcessor, toy_data: Path, task: Task) -> None:
    task.dataset.images = "{split}/images/{image_id}.jpg"
    with pytest.raises(FileNotFoundError, match="12 of 12 images are missing"):
        evaluate(model, processor, task, toy_data)


def test_constrained_decoding_takes_the_split_s_own_names(
    model: Model, processor: KosmosProcessor, toy_data: Path, tmp_path: Path
) -> None:
    captions = json.loads((toy_data / "test/captions.json").read_text())["annotations"]
    names = {entry["caption"] for entry in captions}
    task = tasks.load("easy_vqa_caption", ["decoding.method=beam", "decoding.num_beams=2", "decoding.constrained=true"])
    evaluate(model, processor, task, toy_data, out=tmp_path)
    for line in (tmp_path / "samples/model/easy_vqa_caption-0shot-image+text.jsonl").read_text().splitlines():
        assert json.loads(line)["prediction"] in names


@torch.no_grad()
def test_rices_takes_the_images_nearest_by_the_vision_tower(
    model: Model, processor: KosmosProcessor, toy_data: Path, tmp_path: Path
) -> None:
    task = tasks.load("easy_vqa", ["demonstrations.method=rices"])
    evaluate(model, processor, task, toy_data, shots=(1,), out=tmp_path)

    def vector(path: Path) -> torch.Tensor:
        pixels = processor(images=Image.open(path), text="<image>", return_tensors="pt")["pixel_values"]
        mean = model.model.vision_tower(pixels)[0].mean(0)
        return mean / mean.norm()

    train = {path.name: vector(path) for path in sorted((toy_data / "train/images").iterdir())}
    lines = (tmp_path / "samples/model/easy_vqa-1shot-image+text.jsonl").read_text().splitlines()
    for line in lines:
        shown, own = (image["file"] for image in json.loads(line)["images"])
        query = vector(toy_data / "test/images" / own)
        similarity = {name: float(query @ other) for name, other in train.items()}
        assert similarity[shown] == pytest.approx(max(similarity.values()), abs=1e-5)


@torch.no_grad()
def test_bits_per_byte_equal_a_plain_sum(model: Model, processor: KosmosProcessor, tmp_path: Path) -> None:
    """Texts shorter and longer than the model reads, batched; against one forward pass a window."""
    texts = ["a red circle", "is it blue?", "a green square is red " * 60]
    (tmp_path / "test").mkdir()
    lines = [json.dumps({"id": str(i), "text": text}) for i, text in enumerate(texts)]
    (tmp_path / "test/text.jsonl").write_text("\n".join(lines))
    row, blind = evaluate(model, processor, "starter_text", tmp_path, out=tmp_path / "out")
    assert (blind["model"], blind["value"]) == ("chance", 8)
    nats = 0.0
    for text in texts:
        ids = processor.encode_text(text)
        for start in range(0, len(ids), 255):
            window = torch.tensor([[0, *ids[start : start + 255]]])
            logits = model(input_ids=window).logits[0, :-1].log_softmax(-1)
            nats -= float(logits.gather(1, window[0, 1:, None]).sum())
    expected = nats / math.log(2) / sum(len(text.encode()) for text in texts)
    assert row["value"] == pytest.approx(expected, rel=1e-5)
    assert row["low"] <= row["value"] <= row["high"]
    with pytest.raises(ValueError, match="do not go with method"):
        tasks.load("starter_text", ["metrics=[vqa]"])
    with pytest.raises(ValueError, match="belong together"):
        tasks.load("easy_vqa", ["metrics=[vqa, bits_per_byte]"])
