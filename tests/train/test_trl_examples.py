"""The examples for TRL, one after the other: each learns what only the picture tells, and chats afterwards."""

from __future__ import annotations

import importlib.util
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from kosmos import Conversation, KosmosConfig, KosmosForConditionalGeneration
from kosmos.processing_kosmos import load_processor

if importlib.util.find_spec("trl") is None:  # the examples import it
    pytest.skip("trl is not installed", allow_module_level=True)
datasets = pytest.importorskip("datasets")
EXAMPLES = Path(__file__).parents[2] / "examples"
COLOURS = ("red", "blue")
PROMPT = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "the fish"}]}]
SETTINGS = ["--use_cpu", "--bf16", "False", "--report_to", "none", "--save_strategy", "no", "--logging_steps", "1"]
SETTINGS += ["--per_device_train_batch_size", "8", "--lr_scheduler_type", "constant", "--learning_rate"]


def said(colour: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": [{"type": "text", "text": f"a {colour} boat"}]}]


@pytest.fixture(scope="module")
def base(_world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trl") / "base"
    processor = load_processor(_world["processor"])
    processor.end_turns("eos")
    fields = json.loads(Path(_world["model"]["preset"]).read_text())
    fields["text_config"] |= {"vocab_size": len(processor.tokenizer), "dropout": 0.0}
    ids = {"image_token_id": processor.image_slot_id, "boi_token_id": processor.image_token_id}
    torch.manual_seed(0)
    model = KosmosForConditionalGeneration(KosmosConfig(**fields, **ids, eoi_token_id=processor.image_token_ids()[-1]))
    model.take_rules(processor)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    pictures = {colour: Image.new("RGB", (16, 16), colour) for colour in COLOURS}
    table = [
        {"images": [pictures[one]], "prompt": PROMPT, "completion": said(one), "chosen": said(one),
         "rejected": said(other), "answer": one}
        for one, other in (COLOURS, COLOURS[::-1]) * 8
    ]  # fmt: skip
    for name, columns in (
        ("sft", ["images", "prompt", "completion"]),
        ("dpo", ["images", "prompt", "chosen", "rejected"]),
        ("grpo", ["images", "prompt", "answer"]),
    ):
        datasets.Dataset.from_list([{key: row[key] for key in columns} for row in table]).save_to_disk(folder / name)
    return folder


def run(name: str, *words: object) -> None:
    main = runpy.run_path(str(EXAMPLES / f"trl_{name}.py"))["main"]
    main([str(word) for word in words])


def answers(folder: Path, **options: Any) -> list[str]:
    chat = Conversation(folder, max_new_tokens=8, **options)
    return [chat.fork().ask("the fish", Image.new("RGB", (16, 16), colour)) for colour in COLOURS]


@pytest.fixture(scope="module")
def tuned(base: Path, rows: Path) -> Path:
    out = base.parent / "sft"
    run("sft", base, rows / "sft", "--output_dir", out, "--max_steps", 60, *SETTINGS, 1e-2)
    return out


def test_sft(tuned: Path) -> None:
    assert answers(tuned) == ["a red boat", "a blue boat"]


@pytest.mark.parametrize("lora", [False, True])
def test_dpo_without_a_reference_model(tuned: Path, rows: Path, tmp_path: Path, lora: bool) -> None:
    """From a model that answers, to one that prefers the other answer of each picture."""
    table = datasets.load_from_disk(rows / "dpo")
    swapped = table.rename_columns({"chosen": "rejected", "rejected": "chosen"})
    swapped.save_to_disk(tmp_path / "swapped")
    words = [tuned, tmp_path / "swapped", *(["lora"] if lora else []), "--output_dir", tmp_path / "out"]
    run("dpo", *words, "--max_steps", 30, *SETTINGS, 1e-2 if lora else 2e-3)
    found = answers(tuned, adapter=tmp_path / "out") if lora else answers(tmp_path / "out")
    assert found == ["a blue boat", "a red boat"]
    assert answers(tuned) == ["a red boat", "a blue boat"]


def test_grpo(base: Path, rows: Path, tmp_path: Path) -> None:
    """From a model that says either colour of any picture, to one that says the right one."""
    table = datasets.load_from_disk(rows / "dpo")
    halves = [
        table.select_columns(["images", "prompt", name]).rename_column(name, "completion")
        for name in ("chosen", "rejected")
    ]
    datasets.concatenate_datasets(halves).save_to_disk(tmp_path / "both")
    run("sft", base, tmp_path / "both", "--output_dir", tmp_path / "sft", "--max_steps", 40, *SETTINGS, 1e-2)
    run("grpo", tmp_path / "sft", rows / "grpo", "--output_dir", tmp_path / "out", "--max_steps", 25,
        "--num_generations", 4, "--max_completion_length", 6, *SETTINGS, 3e-3)  # fmt: skip
    assert len(set(answers(tmp_path / "sft"))) == 1
    assert answers(tmp_path / "out") == ["a red boat", "a blue boat"]
