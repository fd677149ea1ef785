"""``image_marks: false``: an image's features stand in the text without marks, in every door alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kosmos import KosmosConfig
from kosmos.image_processing_kosmos import KosmosImageProcessor
from kosmos.processing_kosmos import KosmosProcessor, load_processor
from kosmos_data import Document, Image, Text, objectives
from kosmos_data.images import open_image
from kosmos_train.describe import fit_processor


@pytest.fixture
def bare(processor: KosmosProcessor) -> KosmosProcessor:
    return KosmosProcessor(KosmosImageProcessor(image_size=8), processor.tokenizer, 2, image_marks=False)


def test_the_word_follows_the_features(bare: KosmosProcessor, make_png: Callable[..., bytes]) -> None:
    """A document and a prompt are the same ids, without marks; the last slot is what the first word is predicted at."""
    slot, word = bare.image_slot_id, bare.encode_text("red circle")
    example = objectives.get("causal", bare)(Document("k", [Image(make_png(1)), Text("red circle")]), 0)
    assert example.token.tolist() == [0, slot, slot, *word]
    assert example.label.tolist() == [-100, -100, *word, 2]
    prompts = bare(images=[open_image(make_png(1))], text=["<image>red circle"])
    assert prompts["input_ids"] == [example.token.tolist()]


def test_it_travels_with_the_processor_and_into_the_model(bare: KosmosProcessor, tmp_path: Path) -> None:
    bare.save_pretrained(tmp_path)
    again = load_processor(tmp_path)
    assert again.image_token_ids() == bare.image_token_ids() == [bare.image_slot_id] * 2
    values = KosmosConfig.preset("tiny").to_dict()
    fit_processor(values, again)
    assert (values["image_token_id"], values["boi_token_id"], values["eoi_token_id"]) == (
        bare.image_slot_id,
        None,
        None,
    )
    assert values["num_image_tokens"] == 2
