"""A span connector with queries: any span takes the same few places, whatever its length and its neighbours'."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoProcessor

from kosmos import Conversation, KosmosConfig, KosmosForConditionalGeneration, KosmosProcessor
from kosmos.connectors import build_connector
from kosmos.encoder_configs import KosmosConnectorConfig
from kosmos.modalities import SPAN

QUERIES = 3


@pytest.fixture(scope="module")
def with_places(processor) -> KosmosProcessor:
    """The encoder shares the tokenizer; a span takes three places."""
    return KosmosProcessor(processor.image_processor, processor.tokenizer, num_image_tokens=4, num_span_tokens=QUERIES)


def fields(processor: KosmosProcessor, kind: str, queries: int = QUERIES) -> dict[str, Any]:
    size = len(processor.tokenizer)
    bert = {"model_type": "bert", "vocab_size": size, "hidden_size": 16, "intermediate_size": 16}
    bert |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": size, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    return {
        "text_config": text | {"num_attention_heads": 2},
        "image_token_id": None,
        "span_encoder_config": {"model_config": bert, "train_last_blocks": 1},
        "span_connector_config": {"kind": kind, "num_queries": queries, "num_heads": 2, "depth": 2, "head_dim": 8},
        "span_token_id": processor.span_slot_id,
    }


@pytest.fixture(params=["xconnector", "resampler"])
def model(request, with_places) -> KosmosForConditionalGeneration:
    torch.manual_seed(0)
    return KosmosForConditionalGeneration(KosmosConfig(**fields(with_places, request.param))).eval()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["xconnector", "resampler"])
def test_padding_is_not_seen(kind: str) -> None:
    """Features with a mask equal the shorter features alone; without a mask all count."""
    connector = build_connector(KosmosConnectorConfig(kind=kind, num_queries=5, depth=2), 16, 32, 4)
    features = torch.randn(2, 7, 16)
    valid = torch.arange(7) < torch.tensor([[7], [4]])
    found = connector(features, valid)
    torch.testing.assert_close(found[1:], connector(features[1:, :4]), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found[:1], connector(features[:1]), atol=1e-6, rtol=1e-5)


def test_a_span_takes_its_places(with_places, tmp_path) -> None:
    """Any span as many slots; the number is saved; the encoder still reads every token."""
    with_places.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    long = "what is the red " * 6
    for processor in (with_places, again):
        inputs = processor(text=f"a <span>red</span> <span>{long}</span>", return_tensors="pt")
        assert (inputs["input_ids"] == processor.span_slot_id).sum() == 2 * QUERIES
        assert inputs["span_attention_mask"].sum(1).tolist() == [2, 1 + len(processor.encode_text(long))]
    with pytest.raises(ValueError, match="num_span_tokens=0: a span takes at least one place"):
        KosmosProcessor(with_places.image_processor, with_places.tokenizer, num_span_tokens=0)


def test_a_span_is_read_as_if_alone(model, with_places) -> None:
    """In a batch padded for a longer span: the same features and logits; every parameter of the connector learns."""
    short, long = "<span>red</span> is", "<span>what is the red what is the red</span> is"
    batch = with_places(text=[short, long], return_tensors="pt", padding=True)
    alone = with_places(text=short, return_tensors="pt")
    names = ("span_input_ids", "span_attention_mask")
    together, single = (model.model.encode(SPAN, **{n: x[n] for n in names}) for x in (batch, alone))
    assert together.shape == (2, QUERIES, 32)
    torch.testing.assert_close(together[:1], single, atol=1e-5, rtol=1e-5)
    logits = model(**batch).logits
    torch.testing.assert_close(logits[:1], model(**alone).logits, atol=1e-5, rtol=1e-5)
    logits.sum().backward()
    learning = [p for name, p in model.named_parameters() if "span_connector" in name]
    assert all(p.grad is not None for p in learning)


@pytest.mark.parametrize("beams", [1, 2])
def test_generation_with_several_spans_a_row(model, with_places, beams: int) -> None:
    prompts = ["<span>red</span> and <span>what is the red</span> is", "the <span>is red</span> is"]
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": beams, "eos_token_id": None}
    together = model.generate(**with_places(text=prompts, return_tensors="pt", padding=True), **options)
    for row, prompt in zip(together, prompts, strict=True):
        alone = model.generate(**with_places(text=prompt, return_tensors="pt"), **options)[0]
        assert row[-4:].tolist() == alone[-4:].tolist()


def test_chat_reads_spans(model, with_places) -> None:
    chat = Conversation(model, with_places, max_new_tokens=3)
    chat.messages = [{"role": "user", "content": [{"type": "span", "text": "what is the red"}]}]
    assert isinstance(chat.ask("and?"), str)
    assert chat.prompt().count("<span>") == 1


def test_numbers_that_differ_are_refused(with_places) -> None:
    config = KosmosConfig(**fields(with_places, "resampler"))
    assert config.num_span_tokens == KosmosConfig(**config.to_dict()).num_span_tokens == QUERIES
    assert KosmosConfig(**fields(with_places, "mlp")).num_span_tokens is None
    with pytest.raises(
        ValueError, match="num_span_tokens is 4, but a span_connector_config of kind 'resampler' makes 3"
    ):
        KosmosConfig(**fields(with_places, "resampler"), num_span_tokens=4)
    with pytest.raises(ValueError, match=r"num_span_tokens is 4, but .* kind 'linear' makes one feature a token"):
        KosmosConfig(**fields(with_places, "linear"), num_span_tokens=4)
    model = KosmosForConditionalGeneration(KosmosConfig(**fields(with_places, "resampler", queries=2)))
    inputs = with_places(text="<span>what is the red</span>", return_tensors="pt")
    with pytest.raises(
        ValueError, match="1 spans of 2 features, that is 2 features, but input_ids hold 3 placeholders"
    ):
        model(**inputs)
