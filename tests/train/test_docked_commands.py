"""``kosmos eval`` and ``kosmos chat`` on a model whose decoder is a Llama of transformers: what the commands write is
what the model itself computes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from PIL import Image as Pictures
from test_docked import publish
from test_evaluation import TASK

from kosmos import Conversation, KosmosConfig, KosmosForConditionalGeneration, KosmosImageProcessor, load
from kosmos.cli import main
from kosmos.docking import find_language_model, read_config, take_processor, take_weights

QUESTION = "what color is the sea?"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers, docked, with a random tower of two cells."""
    root = tmp_path_factory.mktemp("docked")
    published = publish(root / "lm", [" ".join([*tiny.WORDS, *tiny.COLOURS, QUESTION])] * 4)
    folder = find_language_model(published)
    processor = take_processor(folder, KosmosImageProcessor(16), num_image_tokens=2, max_length=200)
    begin, slot, *_, end = processor.image_token_ids()
    text = read_config(folder).to_dict() | {"vocab_size": len(processor.tokenizer)}
    parts = {name: tiny.MODEL[name] for name in ("vision_config", "connector_config")}
    torch.manual_seed(0)
    model = KosmosForConditionalGeneration(
        KosmosConfig(text_config=text, **parts, image_token_id=slot, boi_token_id=begin, eoi_token_id=end)
    ).eval()
    take_weights(model, folder)
    with torch.no_grad():  # else what a picture says is lost beside the text
        model.model.connector.dense.weight.mul_(30)
    model.take_rules(processor)
    model.save_pretrained(root / "model")
    processor.save_pretrained(root / "model")
    return root / "model"


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures of one colour each, four more as demonstrations, and a task that asks for the colour."""
    folder = tmp_path_factory.mktemp("task")
    for split in ("test", "train"):
        questions = []
        for index, colour in enumerate(tiny.COLOURS):
            name = f"{split}{index}"
            (folder / f"{name}.png").write_bytes(tiny.picture(colour, 16 + index + 8 * (split == "train")))
            questions.append({"question_id": index, "image_id": name, "question": QUESTION})
        answers = [{"answers": [{"answer": colour}] * 10, "answer_type": "other"} for colour in tiny.COLOURS]
        annotations = [question | answer for question, answer in zip(questions, answers, strict=True)]
        (folder / f"{split}_questions.json").write_text(json.dumps({"questions": questions}))
        (folder / f"{split}_annotations.json").write_text(json.dumps({"annotations": annotations}))
    (folder / "colours.yaml").write_text(yaml.safe_dump(TASK))
    written = TASK | {"decoding": {"method": "greedy", "max_new_tokens": 3}}
    written["prompt"] = {"template": "<image>Question: {question} Answer:", "separator": "\n"}
    (folder / "words.yaml").write_text(yaml.safe_dump(written))
    return folder


def evaluate(checkpoint: Path, task: Path, name: str, out: Path, *more: str) -> dict[int, list[dict[str, Any]]]:
    """The log of each number of shots, 0 and 2."""
    options = ["--tasks", str(task / f"{name}.yaml"), "--data", str(task), "--shots", "0,2", "--device", "cpu"]
    assert main(["eval", str(checkpoint), *options, "--out", str(out), *more]) == 0
    logs = {shots: next((out / "samples").rglob(f"{name}-{shots}shot-*.jsonl")) for shots in (0, 2)}
    return {shots: [json.loads(line) for line in log.read_text().splitlines()] for shots, log in logs.items()}


def test_eval_ranks_as_the_model_does(checkpoint: Path, task: Path, tmp_path: Path) -> None:
    """Without and with demonstrations the best of the candidates is the one to which a plain pass gives most.

    A prompt of the evaluator begins as a document does, and a text segment with a space where the tokenizer puts none.
    """
    model, processor = load(checkpoint)
    begin = processor.opening()
    logs = evaluate(checkpoint, task, "colours", tmp_path)
    rows = json.loads((tmp_path / "results.json").read_text())
    assert {row["shots"] for row in rows if row["model"] == "model"} == {0, 2}
    for record in logs[0]:
        picture = Pictures.open(task / record["images"][0]["file"])
        scores = {}
        for colour in tiny.COLOURS:
            inputs = processor(images=[picture], text=f"{begin}<image> An image of a {colour}", return_tensors="pt")
            begun = processor(images=[picture], text=f"{begin}<image> An image of a", return_tensors="pt")[
                "input_ids"
            ].shape[1]
            with torch.no_grad():
                logs_TV = model(**inputs).logits[0].log_softmax(-1)
            ids = inputs["input_ids"][0]
            scores[colour] = sum(float(logs_TV[at - 1, ids[at]]) for at in range(begun, len(ids)))
        assert record["scores"] == pytest.approx(list(scores.values()), abs=1e-4)
        assert record["prediction"] == max(scores, key=scores.__getitem__)
    assert len({tuple(record["scores"]) for record in logs[0]}) == len(tiny.COLOURS)  # the pictures count
    assert all(record["prediction"] in tiny.COLOURS for record in logs[2])


def test_eval_writes_as_generate_does(checkpoint: Path, task: Path, tmp_path: Path) -> None:
    model, processor = load(checkpoint)
    begin = processor.opening()
    logs = evaluate(checkpoint, task, "words", tmp_path, "--batch-size", "2")
    for record in logs[0]:
        picture = Pictures.open(task / record["images"][0]["file"])
        inputs = processor(images=[picture], text=f"{begin}<image> Question: {QUESTION} Answer:", return_tensors="pt")
        written = model.generate(**inputs, max_new_tokens=3, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert record["prediction"] == processor.decode(written, skip_special_tokens=True).strip()


def test_chat_answers_as_a_conversation(
    checkpoint: Path, task: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One question by ``--ask``, and two typed, of which the second is about the picture of the first."""
    chat = Conversation(checkpoint, max_new_tokens=4)
    first = chat.ask(QUESTION, images=[task / "test0.png"])
    second = chat.ask("is it a calm sea?")
    options = [str(checkpoint), "--image", str(task / "test0.png"), "--max-new-tokens", "4"]
    capsys.readouterr()
    assert main(["chat", *options, "--ask", QUESTION]) == 0
    assert capsys.readouterr().out.strip() == first
    lines = iter([QUESTION, "is it a calm sea?", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert main(["chat", *options]) == 0
    printed = capsys.readouterr().out
    assert first in printed
    assert printed.rstrip().endswith(second)
