"""The causal objective against the layout of KOSMOS-1 table 21, written out by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from kosmos.processing_kosmos import KosmosProcessor
from kosmos_data import BadSample, Document, Image, Span, Text, objectives

DOCUMENT = ("red circle", "blue square")


def layout(processor: KosmosProcessor, make_png: Callable[..., bytes], **options: object) -> tuple:
    """<s> text <image> slots </image> text </s>: ids, and the objective's example."""
    document = Document("k", [Text(DOCUMENT[0], False), Image(make_png(1)), Text(DOCUMENT[1]), Text("a", False)])
    first, second, third = (processor.encode_text(text) for text in (*DOCUMENT, "a"))
    ids = [0, *first, *processor.image_token_ids(), *second, *third, 2]
    return ids, (len(first), len(second), len(third)), objectives.get("causal", processor, **options)(document, 0)


def test_tokens_and_labels_are_the_sequence_and_its_shift(processor: KosmosProcessor, make_png: Callable) -> None:
    ids, _, example = layout(processor, make_png)
    assert example.token.tolist() == ids[:-1]
    assert example.label.tolist() == [
        label if weight else -100 for label, weight in zip(ids[1:], example.weight, strict=True)
    ]
    assert example.position.tolist() == list(range(len(ids) - 1))
    assert set(example.block.tolist()) == {-1}


@pytest.mark.parametrize(
    ("options", "text_before", "image_begin", "text_unsupervised"),
    [
        ({}, 1, 0, 1),
        ({"loss": "all", "predict_image": True}, 1, 1, 1),
        ({"loss": "supervised"}, 0, 0, 0),
    ],
)
def test_loss_mask(
    processor: KosmosProcessor,
    make_png: Callable,
    options: dict,
    text_before: int,
    image_begin: int,
    text_unsupervised: int,
) -> None:
    _, (first, second, third), example = layout(processor, make_png, **options)
    slots = processor.num_image_tokens
    targets = [text_before] * first + [image_begin] + [0] * slots + [0] + [1] * second
    targets += [text_unsupervised] * third + [text_unsupervised]
    assert example.weight.tolist() == targets


def test_the_image_lies_on_its_slots(processor: KosmosProcessor, make_png: Callable) -> None:
    _, (first, _, _), example = layout(processor, make_png)
    (span,) = example.placed
    assert (span.modality, span.start, span.length) == ("image", first + 2, processor.num_image_tokens)
    assert span.payload.shape == (3, 8, 8)
    slots = np.flatnonzero(example.token == processor.image_slot_id)
    assert slots.tolist() == list(range(span.start, span.start + span.length))
    assert np.flatnonzero(~example.cuts).tolist() == [*slots, span.start + span.length]


@pytest.mark.parametrize(
    ("segments", "options", "reason"),
    [
        ([Text("  ")], {}, "empty"),
        ([Text("red", False)], {"loss": "supervised"}, "no supervised token"),
        ([Image(b"no picture"), Text("red")], {}, "image broken"),
    ],
)
def test_unusable_documents(processor: KosmosProcessor, segments: list, options: dict, reason: str) -> None:
    with pytest.raises(BadSample) as caught:
        objectives.get("causal", processor, **options)(Document("k", segments), 0)
    assert caught.value.reason == reason


def test_mistakes_are_named(processor: KosmosProcessor) -> None:
    with pytest.raises(ValueError, match="did you mean 'causal'"):
        objectives.get("casual", processor)
    with pytest.raises(ValueError, match="did you mean 'loss'"):
        objectives.get("causal", processor, los="all")
    with pytest.raises(ValueError, match="objective 'causal': loss='some': choose one of all, supervised"):
        objectives.get("causal", processor, loss="some")


def test_a_span_of_fixed_places(processor: KosmosProcessor) -> None:
    """With ``num_span_tokens`` any span has as many slots, however many tokens the encoder reads."""
    places = KosmosProcessor(processor.image_processor, processor.tokenizer, num_span_tokens=3)
    for text in ("red", "red house blue red house blue"):
        example = objectives.get("causal", places)(Document("k", [Span(text), Text("blue")]), 0)
        (span,) = example.placed
        assert span.payload.tolist() == [0, *processor.encode_text(text)]
        assert (example.token == processor.span_slot_id).nonzero()[0].tolist() == [1, 2, 3]
        assert (span.start, span.length) == (1, 3)
        assert example.label[3] == processor.encode_text("blue")[0]


def test_a_text_span_is_slots_without_loss(processor: KosmosProcessor) -> None:
    """MetaLM puts nothing around a span; what follows is predicted at its last slot."""
    example = objectives.get("causal", processor)(Document("k", [Span("red house"), Text("blue")]), 0)
    (span,) = example.placed
    assert span.payload.tolist() == [0, *processor.encode_text("red house")]
    assert (span.modality, span.start, span.length) == ("span", 1, len(span.payload) - 1)
    assert (example.token[1 : 1 + span.length] == processor.span_slot_id).all()
    assert example.weight.tolist() == [0.0] * span.length + [1.0] * (len(example) - span.length)
    assert example.label[span.length] == processor.encode_text("blue")[0]
