"""A world small enough for tests: a corpus of three kinds of documents, its processor, and a model config."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

from PIL import Image as Picture

COLOURS = ("red", "green", "blue", "black")
WORDS = [
    "the",
    "fish",
    "boat",
    "sails",
    "over",
    "a",
    "calm",
    "sea",
    "while",
    "seven",
    "birds",
    "sing",
    "of",
    "far",
    "hills",
    "and",
    "cold",
    "rain",
]
MODEL = {
    "text_config": {
        "vocab_size": 100,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "position_type": "xpos",
        "max_position_embeddings": 64,
        "dropout": 0.1,
    },
    "vision_config": {
        "backend": "open_clip",
        "model_config": {
            "embed_dim": 16,
            "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        },
    },
    "connector_config": {"kind": "xconnector", "num_queries": 2, "num_heads": 2},
}


def picture(colour: str, size: int = 16) -> bytes:
    """A one-coloured PNG."""
    buffer = io.BytesIO()
    Picture.new("RGB", (size, size), colour).save(buffer, "PNG")
    return buffer.getvalue()


def make_world(root: Path) -> dict[str, Any]:
    """Write shards, processor and model config under ``root``; return a run's settings over them."""
    from kosmos import KosmosImageProcessor, KosmosProcessor, train_tokenizer
    from kosmos_data import Document, Image, Text, write_shards

    draw = random.Random(0)

    def words(least: int, most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(least, most)))

    def pair(key: str, count: int) -> Document:
        segments: list[Any] = []
        for _ in range(count):
            colour = draw.choice(COLOURS)
            segments += [Image(picture(colour)), Text(f"An image of a {colour} {draw.choice(WORDS)}")]
        return Document(key, segments)

    kinds = {
        "text": [Document(f"t{index}", [Text(words(5, 60))]) for index in range(160)],
        "pairs": [pair(f"p{index}", 1) for index in range(160)],
        "interleaved": [pair(f"i{index}", 3) for index in range(80)],
    }
    for name, documents in kinds.items():
        write_shards(root / name, documents, max_documents=20)
    texts = [document.text for documents in kinds.values() for document in documents]
    tokenizer = train_tokenizer(texts, vocab_size=120)
    processor = KosmosProcessor(KosmosImageProcessor(image_size=16), tokenizer, num_image_tokens=2)
    processor.save_pretrained(root / "processor")
    (root / "model.json").write_text(json.dumps(MODEL))
    weights = {"text": 0.5, "pairs": 0.5, "interleaved": 0.2}
    return {
        "model": {"preset": str(root / "model.json"), "vision_weights": "random"},
        "processor": str(root / "processor"),
        "steps": 12,
        "data": {
            "sources": [{"name": name, "shards": str(root / name), "weight": weights[name]} for name in kinds],
            "row_tokens": 64,
            "rows_per_step": 8,
            "rows_per_micro_batch": 2,
        },
        "optim": {"lr": 1e-3, "warmup": 4},
        "checkpoint": {"every": 4},
        "log": {"every": 1},
    }
