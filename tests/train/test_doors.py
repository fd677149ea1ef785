"""Every door to a checkpoint writes the same answer, because the rules of writing are in the checkpoint.

The model is taught by heart to go on behind its answer: ``red``, a new line, another question, ``</s>``. A door that
knows no rule shows that.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig, pipeline

from kosmos import Conversation, KosmosConfig, KosmosForConditionalGeneration, KosmosProcessor, settings
from kosmos.processing_kosmos import load_processor
from kosmos_data import Document, Text, write_shards
from kosmos_eval.adapters.harness import HarnessModel
from kosmos_eval.evaluate import evaluate_checkpoint
from kosmos_eval.prompts import Prompt
from kosmos_train import TrainConfig, train

QUESTION = "what colour is it?"
ASKED = f"Question: {QUESTION} Answer:"
WRITTEN = " red\nQuestion: a calm sea"


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "0.png"
    path.write_bytes(tiny.picture("red"))
    return path


@pytest.fixture(scope="module")
def taught(
    tmp_path_factory: pytest.TempPathFactory, picture: Path
) -> tuple[KosmosForConditionalGeneration, KosmosProcessor, dict[str, Any]]:
    """The model that knows one page by heart, its processor, and settings of a run over the tiny corpus."""
    values = tiny.make_world(tmp_path_factory.mktemp("world"))
    processor = load_processor(values["processor"])
    begin, slot, *_, end = processor.image_token_ids()
    sizes = tiny.MODEL["text_config"] | {"vocab_size": len(processor.tokenizer), "dropout": 0.0}
    sizes |= {"max_position_embeddings": 128}
    torch.manual_seed(0)
    model = KosmosForConditionalGeneration(
        KosmosConfig(
            **tiny.MODEL | {"text_config": sizes}, image_token_id=slot, boi_token_id=begin, eoi_token_id=end,
            num_image_tokens=2,
        )
    )  # fmt: skip
    inputs = processor(text=f"<image>{ASKED}", images=[Image.open(picture)], return_tensors="pt")
    answer = torch.tensor([[*processor.encode_text(WRITTEN), processor.tokenizer.eos_token_id]])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], answer], dim=1)
    labels = inputs["input_ids"].clone()
    labels[:, : -answer.shape[1]] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"], labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.05
    return model.eval(), processor, values


def save(taught: tuple[Any, Any, Any], folder: Path, way: str) -> Path:
    """Write the checkpoint: model and processor in either order, as before there were rules, or with other rules."""
    model, processor, _ = taught
    model.generation_config = GenerationConfig.from_model_config(model.config)
    parts = [model, processor] if way != "processor first" else [processor, model]
    for part in parts:
        part.save_pretrained(folder)
    path = folder / "generation_config.json"
    rules = json.loads(path.read_text())
    if way == "old":
        path.write_text(
            json.dumps({name: rules[name] for name in ("bos_token_id", "pad_token_id")} | {"eos_token_id": 2})
        )
    if way == "whole page":
        path.write_text(json.dumps(rules | {"eos_token_id": 2}))
    return folder


def by_pipeline(folder: Path, picture: Path, _: Any) -> str:
    content = [{"type": "image", "image": Image.open(picture)}, {"type": "text", "text": QUESTION}]
    run = pipeline("image-text-to-text", model=str(folder), device="cpu")
    return run(text=[{"role": "user", "content": content}], return_full_text=False)[0]["generated_text"]


def by_generate(folder: Path, picture: Path, _: Any) -> str:
    """Without an argument, as a user of transformers calls it."""
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    inputs = processor(text=f"<image>{ASKED}", images=[Image.open(picture)], return_tensors="pt")
    return processor.decode(model.generate(**inputs)[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def by_chat(folder: Path, picture: Path, _: Any) -> str:
    return Conversation(folder).ask(QUESTION, images=[picture])


def by_samples(folder: Path, picture: Path, values: dict[str, Any]) -> str:
    """A run from the checkpoint that changes nothing."""
    corpus = folder.parent / "corpus"
    write_shards(corpus, [Document(f"t{index}", [Text("a calm sea")]) for index in range(40)])
    changes = {
        "model": {"checkpoint": str(folder)},
        "processor": None,
        "steps": 1,
        "optim": {"lr": 1e-12, "warmup": 0},
        "samples": {"every": 1, "prompts": [{"text": ASKED, "images": [str(picture)]}], "max_new_tokens": 32},
        "data": values["data"] | {"sources": [{"name": "text", "shards": str(corpus)}]},
    }
    train(settings.from_dict(TrainConfig, values | changes), folder.parent / "run")
    written = folder.parent / "run/checkpoints/step-000001/generation_config.json"
    assert json.loads(written.read_text())["eos_token_id"] == generation_rules(folder)["eos_token_id"]
    return json.loads((folder.parent / "run/samples.jsonl").read_text())["answer"]


def by_eval(folder: Path, picture: Path, _: Any) -> str:
    test = folder.parent / "vqa/test"
    (test / "images").mkdir(parents=True)
    (test / "images/0.png").write_bytes(picture.read_bytes())
    ids = {"question_id": 0, "image_id": 0}
    (test / "vqa_questions.json").write_text(json.dumps({"questions": [ids | {"question": QUESTION}]}))
    votes = [{"answer": "red", "answer_id": vote} for vote in range(10)]
    ids |= {"question_type": "x", "answer_type": "x", "answers": votes}
    (test / "vqa_annotations.json").write_text(json.dumps({"annotations": [ids]}))
    out = folder.parent / "out"
    evaluate_checkpoint(
        folder, ["easy_vqa"], test.parent, device="cpu", out=out, overrides=["decoding.max_new_tokens=32"]
    )
    (log,) = (out / "samples").rglob("*.jsonl")
    return json.loads(log.read_text())["prediction"]


def by_harness(folder: Path, picture: Path, _: Any) -> str:
    """What the plug-ins for lm-eval and lmms-eval call; both harnesses end an answer at an empty line by default."""
    prompt, harness = Prompt((picture, ASKED), (1,)), HarnessModel(folder, "cpu")
    bare, default = harness.generate([(prompt, {}), (prompt, {"until": ["\n\n"]})])
    assert bare == default
    return bare


DOORS: list[Callable[[Path, Path, Any], str]] = [by_pipeline, by_generate, by_chat, by_samples, by_eval, by_harness]


def generation_rules(folder: Path) -> dict[str, Any]:
    model = AutoModelForImageTextToText.from_pretrained(folder)
    return {
        name: getattr(model.generation_config, name) for name in ("eos_token_id", "pad_token_id", "suppress_tokens")
    }


@pytest.mark.slow
@pytest.mark.parametrize("way", ["model first", "processor first", "old", "whole page"])
def test_all_doors_write_the_same(taught: Any, picture: Path, tmp_path: Path, way: str) -> None:
    folder = save(taught, tmp_path / "checkpoint", way)
    _, processor, values = taught
    rules = processor.writing_rules()
    ends = 2 if way == "whole page" else rules["eos_token_id"]
    assert generation_rules(folder) == {
        "eos_token_id": ends, "pad_token_id": rules["pad_token_id"], "suppress_tokens": rules["suppress_tokens"],
    }  # fmt: skip
    answers = {door.__name__: door(folder, picture, values).replace("\n", "").strip() for door in DOORS}
    expected = WRITTEN.replace("\n", "").strip() if way == "whole page" else "red"
    assert answers == dict.fromkeys(answers, expected)
