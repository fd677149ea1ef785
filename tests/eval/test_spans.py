"""Prompts whose inputs go through the text encoder (MetaLM): the same answers as the model called on one prompt
alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image as Pictures

from kosmos import KosmosConfig, KosmosForConditionalGeneration, KosmosImageProcessor, KosmosProcessor, train_tokenizer
from kosmos_data import Document, Image, Text
from kosmos_data.objectives._flatten import flatten
from kosmos_eval import prompts, suite, tasks
from kosmos_eval.evaluate import evaluate
from kosmos_eval.items import Item
from kosmos_eval.model import EvaluatedModel, in_order
from kosmos_eval.prompts import Prompt, Span, Token
from kosmos_eval.runner import Runner
from kosmos_eval.tasks import Decoding


@pytest.fixture(scope="module", params=["linear", "xconnector"])
def parts(request: pytest.FixtureRequest) -> tuple[KosmosForConditionalGeneration, KosmosProcessor]:
    """A text-only model with a BERT of two layers that shares the decoder's tokenizer; a span takes a place for each
    of its tokens, or three."""
    places = 3 if request.param == "xconnector" else None
    tokenizer = train_tokenizer(
        ["Is ant larger than house? Yes No egg apple cat chair horse car bus mountain"] * 3, 120
    )
    processor = KosmosProcessor(
        KosmosImageProcessor(image_size=16), tokenizer, num_image_tokens=4, max_length=512, num_span_tokens=places
    )
    bert = {"model_type": "bert", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    bert |= {"num_attention_heads": 2, "vocab_size": len(tokenizer)}
    text = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 512, "position_type": "sinusoidal"}
    torch.manual_seed(0)
    config = KosmosConfig(
        text_config=text, vision_config=None, image_token_id=None, span_encoder_config={"model_config": bert},
        span_token_id=processor.span_slot_id, span_connector_config={"kind": request.param, "num_queries": 3},
    )  # fmt: skip
    model = KosmosForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model, processor


def test_layout_of_encoded_demonstrations() -> None:
    task = tasks.load("relative_size_encoded")
    shot = Item("d", {"first": "bus", "second": "egg"}, (), ("Yes",))
    prompt = prompts.build(task, Item("q", {"first": "ant", "second": "house"}, (), ("No",)), [shot])
    assert prompt.segments == (
        Span("Is bus larger than egg?"), " Yes", Token("</s>"), Span("Is ant larger than house?")
    )  # fmt: skip
    assert prompt.text == "<span>Is bus larger than egg?</span> Yes</s><span>Is ant larger than house?</span>"


def test_a_context_is_written_as_the_chat_writes_it() -> None:
    """Encoded, as text and left out: the same question."""
    item = Item("q", {"context": "A red circle is on the left.", "question": "what is red?"}, (), ("circle",))
    encoded, read, closed = (
        prompts.build(tasks.load(name), item).segments for name in ("reading_encoded", "reading", "reading_closed")
    )
    assert encoded == ("Question: ", Span("A red circle is on the left."), "what is red? Answer:")
    assert read == ("Question: A red circle is on the left. what is red? Answer:",)
    assert closed == ("Question: what is red? Answer:",)


def test_training_chat_and_evaluation_write_the_same_ids(
    parts: tuple[KosmosForConditionalGeneration, KosmosProcessor], tmp_path: Path
) -> None:
    """An image, text and a span: ids, and what the text encoder reads, through all three doors."""
    model, processor = parts
    picture = tmp_path / "red.png"
    Pictures.new("RGB", (20, 16), "red").save(picture)
    span, texts = "Is ant larger than house?", ("Question: ", " cat? Answer:")
    segments = [Image(picture.read_bytes()), Text(texts[0]), Span(span), Text(texts[1])]
    trained = flatten(Document("k", segments), processor)
    asked = processor(images=[Pictures.open(picture)], text=f"<image>{texts[0]}<span>{span}</span>{texts[1]}")
    (stage,) = Runner(model, processor).stages(Prompt((picture, texts[0], Span(span), texts[1])))
    assert trained.ids[:-1].tolist() == list(stage.ids) == asked["input_ids"][0]
    read = [placed.payload.tolist() for placed in trained.placed if placed.modality == "span"]
    assert (
        read
        == [list(piece.payload) for piece in stage.pieces if piece.modality == "span"]
        == asked["span_input_ids"].tolist()
    )


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_batched_equals_generate_one_by_one(
    parts: tuple[KosmosForConditionalGeneration, KosmosProcessor], method: str
) -> None:
    model, processor = parts
    shared = (Span("Is bus larger than egg?"), " Yes", Token("</s>"))
    asked = [
        Prompt((*shared, Span(f"Is {a} larger than {b}?")), (3,))
        for a, b in [("ant", "house"), ("cat", "big mountain")]
    ]
    asked += [Prompt((Span("egg"), " is")), Prompt(("Is ant larger?",))]
    decoding = Decoding(method, 5, num_beams=2 if method == "beam" else 1)
    answers = in_order(EvaluatedModel(Runner(model, processor)).generate(asked, decoding, [0] * 4))
    for prompt, answer in zip(asked, answers, strict=True):
        inputs = processor(text=prompt.text, return_tensors="pt")
        ids = model.generate(
            **inputs, do_sample=False, max_new_tokens=5, num_beams=decoding.num_beams, pad_token_id=1,
            eos_token_id=processor.answer_end_ids(), suppress_tokens=[processor.span_slot_id],
        )  # fmt: skip
        text = processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        assert answer == text


def test_the_task_runs_and_encoded_inputs_matter(
    parts: tuple[KosmosForConditionalGeneration, KosmosProcessor], tmp_path: Path
) -> None:
    model, processor = parts
    suite.make("relative_size", tmp_path / "sizes", 20)
    rows = evaluate(model, processor, "relative_size_encoded", tmp_path / "sizes", shots=(0, 2), out=tmp_path / "out")
    assert rows[0]["n"] == 15
    lines = (tmp_path / "out/samples/model/relative_size_encoded-2shot-image+text.jsonl").read_text().splitlines()
    scores = {tuple(json.loads(line)["scores"]) for line in lines}
    assert len(scores) == len(lines)


def test_a_model_without_text_encoder_refuses_spans(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor
) -> None:
    with pytest.raises(ValueError, match="no text encoder"):
        Runner(model, processor).stages(Prompt((Span("red"),)))
