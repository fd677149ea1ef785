"""The afternoon of who tunes, in one test: ``kosmos tune`` with LoRA, killed and resumed, then every door to what it
learned.

The model has a vision tower and a text encoder; two ranks train it under ZeRO-2 on packed rows of pictures and of
contexts that the text encoder reads. An answer has two lines and depends on what was shown.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jobs
import pytest
import tiny
import yaml
from forks import launch
from PIL import Image as Pictures
from safetensors import safe_open
from test_evaluation import TASK
from test_tuning import kill_behind_a_checkpoint
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

from kosmos import Conversation, settings
from kosmos.cli import main
from kosmos.pictures import as_data_uri
from kosmos.tuning import find_adapter
from kosmos_data import Document, Image, Span, Text, write_shards
from kosmos_data.document import Segment
from kosmos_data.turns import answered, turn
from kosmos_train.runs import read_metrics

QUESTION, READ = "what sails?", "who sings?"
PLACES = dict(zip(tiny.COLOURS, ("over far hills", "a calm sea", "seven birds sing", "while cold rain"), strict=True))
STEPS, EVERY, KILLED = 60, 20, 26


def begin(colour: str) -> str:
    return f"a {colour} boat"


def answer(colour: str) -> str:
    """What is learned: two lines, both of which depend on what was shown."""
    return f"{begin(colour)}\n{PLACES[colour]}"


def write_asked(folder: Path, said: Callable[[str], str]) -> str:
    """Shards in which each colour is asked about as a picture, and as a context that the text encoder reads."""
    documents: list[list[Segment]] = []
    for colour in tiny.COLOURS:
        documents.append([Image(tiny.picture(colour)), *turn(QUESTION, said(colour), last=True)])
        begun = [Text("Question: ", supervised=False), Span(f"the {colour} boat")]
        documents.append([*begun, Text(f"{READ} Answer:", supervised=False), answered(said(colour), last=True)])
    write_shards(folder, [Document(f"d{n}", segments) for n, segments in enumerate(documents * 10)])
    return str(folder)


def sources(world: dict[str, Any], **shards: str) -> dict[str, Any]:
    """Settings of the data: 4 rows of 128 tokens a step, one kind as often as the other."""
    rows = {"row_tokens": 128, "rows_per_step": 4, "rows_per_micro_batch": 2}
    return world["data"] | rows | {"sources": [{"name": name, "shards": where} for name, where in shards.items()]}


@pytest.fixture(scope="module")
def base(_world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with both encoders, pretrained until it names what it is shown in one line and has read the two lines.

    LoRA cannot do that alone: the output matrix, which is that of the embeddings, stays as it is.
    """
    root = tmp_path_factory.mktemp("doors")
    write_shards(root / "text", [Document(f"t{n}", [Text(answer(tiny.COLOURS[n % 4]))]) for n in range(40)])
    encoder = {"model_type": "bert", "vocab_size": 1, "hidden_size": 16, "intermediate_size": 32}
    encoder |= {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
    decoder = {"dropout": 0.0, "max_position_embeddings": 128}
    overrides = {"span_encoder_config": {"model_config": encoder}, "text_config": decoder}
    values = _world | {
        "model": _world["model"] | {"overrides": overrides},
        "data": sources(_world, shown=write_asked(root / "shown", begin), text=str(root / "text")),
        "optim": {"lr": 1e-2, "warmup": 5},
        "steps": 50,
        "checkpoint": {"every": 50},
    }
    jobs.run(values, str(root / "base"))
    return root / "base"


@pytest.fixture(scope="module")
def run(_world: dict[str, Any], base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``kosmos tune`` on two ranks, of which kill -9 ended the first try; its log is kept beside."""
    root = tmp_path_factory.mktemp("tuned")
    values = {
        "model": {"checkpoint": str(base)},
        "tuning": {"method": "lora", "rank": 16, "alpha": 32.0, "also": ["model.*connector.*"]},
        "data": sources(_world, asked=write_asked(root / "asked", answer)),
        "optim": {"lr": 1e-2, "warmup": 5},
        "engine": {"zero_stage": 2},
        "steps": STEPS,
        "checkpoint": {"every": EVERY},
        "log": {"every": 1},
    }
    settings.write_yaml(values, root / "run.yaml")
    command = ["tune", str(root / "run.yaml"), f"run={root / 'run'}"]
    kill_behind_a_checkpoint(launch(root / "killed", 2, jobs.command, command), root / "run", KILLED)
    (root / "killed.jsonl").write_bytes((root / "run" / "metrics.jsonl").read_bytes())
    assert launch(root / "resumed", 2, jobs.command, [*command, "--resume"]).results() == [0, 0]
    return root / "run"


@pytest.fixture(scope="module")
def pictures(run: Path) -> dict[str, Path]:
    """A PNG of each colour, as learned from, and a task that asks about them."""
    folder = run.parent / "task"
    folder.mkdir()
    questions, annotations = [], []
    for index, colour in enumerate(tiny.COLOURS):
        (folder / f"{colour}.png").write_bytes(tiny.picture(colour))
        questions.append({"question_id": index, "image_id": colour, "question": QUESTION})
        annotations.append(questions[-1] | {"answers": [{"answer": answer(colour)}] * 10, "answer_type": "other"})
    (folder / "test_questions.json").write_text(json.dumps({"questions": questions}))
    (folder / "test_annotations.json").write_text(json.dumps({"annotations": annotations}))
    asked = {"template": "<image>Question: {question} Answer:", "separator": "\n"}
    task = TASK | {"prompt": asked, "decoding": {"method": "greedy", "max_new_tokens": 60}}
    (folder / "sails.yaml").write_text(yaml.safe_dump({key: task[key] for key in task if key != "demonstrations"}))
    return {colour: folder / f"{colour}.png" for colour in tiny.COLOURS}


def all_answers(chat: Conversation, pictures: dict[str, Path]) -> dict[str, list[str]]:
    """What is said of each colour as a picture, and as a context that the text encoder reads."""
    found = {}
    for colour, picture in pictures.items():
        found[colour] = []
        for question, shown in ((QUESTION, {"images": [picture]}), (READ, {"context": f"the {colour} boat"})):
            chat.reset()
            found[colour].append(chat.ask(question, **shown))
    return found


LEARNED = {colour: [answer(colour)] * 2 for colour in tiny.COLOURS}


@pytest.mark.slow
def test_it_was_resumed_and_keeps_only_what_learned(run: Path) -> None:
    """The steps between the checkpoint and the kill were done twice, with the same losses."""
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    twice = [json.loads(line) for line in (run.parent / "killed.jsonl").read_text().splitlines(keepends=True)[EVERY:-1]]
    assert len(twice) >= KILLED - EVERY - 1
    for first, again in zip(twice, rows[EVERY:], strict=False):
        assert abs(first["loss"] - again["loss"]) <= 1e-6, first["step"]
    assert rows[-1]["loss"] < 0.2
    assert min(row["packed"] for row in rows) > 0.8
    kept = find_adapter(run)
    with safe_open(kept / "adapter_model.safetensors", framework="pt") as file:
        keys = set(file.keys())
    learned = ("lora_A", "lora_B", ".connector.", ".span_connector.")
    assert all(any(part in key for key in keys) for part in learned)
    assert all(any(part in key for part in learned) for key in keys)
    assert not (kept / "model.safetensors").exists()


@pytest.mark.slow
def test_every_door_gives_what_was_learned(
    run: Path, base: Path, pictures: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Both lines of every answer: base and adapter, the adapter alone, merged; the base is as it was."""
    chat = Conversation(base, adapter=run, max_new_tokens=60)
    assert all_answers(chat, pictures) == LEARNED
    assert all_answers(Conversation(run, max_new_tokens=60), pictures) == LEARNED
    chat.use(None)
    untuned = all_answers(chat, pictures)
    assert untuned == all_answers(Conversation(base, max_new_tokens=60), pictures)
    assert not any(said in LEARNED["red"] + LEARNED["blue"] for said in untuned["red"])
    capsys.readouterr()
    options = ["--image", str(pictures["blue"]), "--ask", QUESTION]
    assert main(["chat", str(base), "--adapter", str(run), *options]) == 0
    assert capsys.readouterr().out.strip() == answer("blue")

    task, out = pictures["red"].parent, run.parent / "scores"
    asked = ["--tasks", str(task / "sails.yaml"), "--data", str(task), "--device", "cpu", "--out", str(out)]
    assert main(["eval", str(base), "--adapter", str(run), *asked]) == 0
    (log,) = (out / "samples").rglob("*image+text.jsonl")
    said = [json.loads(line)["prediction"] for line in log.read_text().splitlines()]
    assert said == [answer(colour) for colour in tiny.COLOURS]


@pytest.mark.slow
def test_merged_it_is_an_ordinary_checkpoint(run: Path, pictures: dict[str, Path]) -> None:
    """Conversation, transformers' pipeline and generate(), OpenAI's interface: they know nothing of adapters."""
    merged = run.parent / "merged"
    assert main(["merge", str(run), "--out", str(merged)]) == 0
    assert all_answers(Conversation(merged, max_new_tokens=60), pictures) == LEARNED
    write = pipeline("image-text-to-text", model=str(merged), device="cpu")
    for colour in ("green", "black"):
        content = [{"type": "image", "image": Pictures.open(pictures[colour])}, {"type": "text", "text": QUESTION}]
        (found,) = write(text=[{"role": "user", "content": content}], return_full_text=False, max_new_tokens=60)
        assert found["generated_text"].strip() == answer(colour)
        processor, model = AutoProcessor.from_pretrained(merged), AutoModelForImageTextToText.from_pretrained(merged)
        inputs = processor(
            images=Pictures.open(pictures[colour]), text=f"<image>Question: {QUESTION} Answer:", return_tensors="pt"
        )
        written = model.generate(**inputs, max_new_tokens=60)[0, inputs["input_ids"].shape[1] :]
        assert processor.decode(written, skip_special_tokens=True).strip() == answer(colour)

    pytest.importorskip("openai")
    from starlette.testclient import TestClient

    from kosmos.serve import build_app

    shown = {"type": "image_url", "image_url": {"url": as_data_uri(Pictures.open(pictures["red"]))}}
    content = [shown, {"type": "text", "text": QUESTION}]
    with TestClient(build_app(merged), base_url="http://127.0.0.1") as client:
        body = {"model": "kosmos", "messages": [{"role": "user", "content": content}], "max_tokens": 60}
        reply = client.post("/v1/chat/completions", json=body).json()
    assert reply["choices"][0]["message"]["content"] == answer("red")
