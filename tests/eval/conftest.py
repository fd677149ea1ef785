"""Golden files of the evaluation tests (see tests/fixtures/eval/README.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kosmos import KosmosConfig, KosmosForConditionalGeneration, KosmosImageProcessor, KosmosProcessor, train_tokenizer
from kosmos_eval import tasks
from kosmos_eval.model import EvaluatedModel
from kosmos_eval.tasks import Task

FIXTURES = Path(__file__).parents[1] / "fixtures" / "eval"


@pytest.fixture(scope="session")
def goldens() -> Path:
    return FIXTURES


@pytest.fixture(scope="session")
def coco_sample(goldens: Path) -> dict[str, Any]:
    """The 1,000 published sample captions: ids, predictions, references, and the official scores."""
    captions = json.loads((goldens / "captions_official/captions.json").read_text())
    expected = json.loads((goldens / "captions_official/expected_scores.json").read_text())
    ids = [str(identifier) for identifier in expected["image_ids"]]
    return {
        "ids": ids,
        "predictions": [captions["cands"][i] for i in ids],
        "references": [captions["refs"][i] for i in ids],
        "expected": expected,
    }


COLORS = ("red", "blue", "green", "black")
SHAPES = ("circle", "square", "triangle")


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VQA and caption data set in published formats: one colour an image, two questions each; train and test."""
    root = tmp_path_factory.mktemp("toy")
    for split, start, count in (("train", 0, 24), ("test", 100, 12)):
        folder = root / split
        (folder / "images").mkdir(parents=True)
        write_split(folder, range(start, start + count))
    return root


def write_split(folder: Path, numbers: range) -> None:
    questions, annotations, captions = [], [], []
    for number in numbers:
        color, shape = COLORS[number % 4], SHAPES[number % 3]
        pixels = np.full((16, 16, 3), [40 + 40 * COLORS.index(color), number, 80 * SHAPES.index(shape)], dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        asked = [("what color is it?", color, "color"), (f"is it a {shape}?", "yes", "yes/no")]
        for i, (question, answer, kind) in enumerate(asked):
            ids = {"question_id": number * 10 + i, "image_id": number}
            questions.append(ids | {"question": question})
            votes = [{"answer": answer, "answer_id": vote} for vote in range(1, 11)]
            annotations.append(ids | {"question_type": kind, "answer_type": kind, "answers": votes})
        captions += [{"image_id": number, "id": number, "caption": f"a {color} {shape}"}]
    images = [{"id": number, "file_name": f"{number}.png"} for number in numbers]
    (folder / "vqa_questions.json").write_text(json.dumps({"questions": questions}))
    (folder / "vqa_annotations.json").write_text(json.dumps({"annotations": annotations}))
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))


@pytest.fixture(scope="session")
def processor() -> KosmosProcessor:
    words = [
        f"Question: what color is it? Answer: {color}\nAn image of a {color} {shape}"
        for color in COLORS
        for shape in SHAPES
    ]
    tokenizer = train_tokenizer([*words, "is it a yes no Yes No"], vocab_size=120)
    return KosmosProcessor(KosmosImageProcessor(image_size=16), tokenizer, num_image_tokens=4, max_length=256)


@pytest.fixture(scope="session")
def model(processor: KosmosProcessor) -> KosmosForConditionalGeneration:
    """A random model of 3 layers, wide enough in its outputs that no two tokens are near a tie."""
    tokenizer = processor.tokenizer
    torch.manual_seed(0)
    config = KosmosConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
            "num_attention_heads": 2, "max_position_embeddings": 256,
        },
        vision_config={
            "model_config": {"embed_dim": 16, "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size":
            8, "head_width": 8}},
        },
        connector_config={"kind": "resampler", "num_queries": 4, "num_heads": 2, "depth": 1, "head_dim": 8},
        image_token_id=processor.image_slot_id,
        boi_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        eoi_token_id=tokenizer.convert_tokens_to_ids("</image>"),
    )  # fmt: skip
    model = KosmosForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="session")
def checkpoint(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The random model as a folder."""
    folder = tmp_path_factory.mktemp("checkpoint") / "toy"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts the model was given, call by call."""
    counts: list[int] = []
    generate = EvaluatedModel.generate

    def counting(self: EvaluatedModel, prompts: Any, *rest: Any) -> Any:
        counts.append(len(prompts))
        return generate(self, prompts, *rest)

    monkeypatch.setattr(EvaluatedModel, "generate", counting)
    return counts


@pytest.fixture
def task() -> Task:
    return tasks.load("easy_vqa")
