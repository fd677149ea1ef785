"""A modality from outside: one entry in the table and one segment, and everything between a document and its answer
reads it like images and spans."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pictures
from torch import nn

from kosmos import KosmosConfig, KosmosForConditionalGeneration, KosmosImageProcessor, KosmosProcessor, train_tokenizer
from kosmos.configuration_kosmos import checked
from kosmos.cost import model_cost, part_of
from kosmos.encoder_configs import KosmosConnectorConfig
from kosmos.modalities import MODALITIES, Modality, stack_inputs
from kosmos.segments import SEGMENTS
from kosmos_data import Corpus, DataConfig, Document, Image, SourceConfig, Span, Text, build_loader, write_shards
from kosmos_data.replay import rows_of

TONE_SLOT, TONES = 102, 2


@dataclass(frozen=True)
class Tone:
    """Pitch and length."""

    numbers: list[float]


class ToneEncoder(nn.Module):
    """A tone is two numbers, pitch and length; its features are two."""

    width = 8

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(1, self.width)

    def forward(self, tones_I2: torch.Tensor) -> torch.Tensor:
        return self.dense(tones_I2[..., None])


@checked
class ToneConfig(KosmosConfig):
    """A Kosmos config with tones."""

    tone_config: dict | None = None
    tone_connector_config: dict | None = None
    tone_token_id: int | None = TONE_SLOT


TONE = Modality(
    name="tone",
    inputs=("tones",),
    config="tone_config",
    connector_config="tone_connector_config",
    token="tone_token_id",
    encoder="tone_encoder",
    connector="tone_connector",
    parts=("tones", "tones"),
    marks=("", "<tone_slot>", ""),
    payload=lambda processor, tone: np.array(tone.numbers, dtype=np.float32),
    stack=lambda tones: {"tones": torch.from_numpy(np.stack(tones))},
    build=ToneEncoder,
    read=lambda model, tones: model.tone_connector(model.tone_encoder(tones)),
    places=lambda config, inputs: [TONES] * len(inputs["tones"]),
    smallest=lambda config, device: {"tones": torch.zeros(1, TONES, device=device)},
    units=lambda inputs: len(inputs["tones"]),
)


def _refill(table: dict[str, Any], entries: dict[str, Any]) -> None:
    table.clear()
    table.update(entries)


@pytest.fixture
def model(build) -> Iterator[KosmosForConditionalGeneration]:
    """Images, spans and tones, in a table of these three: the documents below have no other kind."""
    before = [(table, dict(table)) for table in (MODALITIES, SEGMENTS)]
    for (table, entries), tone in zip(before, (TONE, Tone), strict=True):
        _refill(table, {"image": entries["image"], "span": entries["span"], "tone": tone})
    try:
        fields = build(spans=True).config.to_dict()
        torch.manual_seed(0)
        connector = KosmosConnectorConfig(kind="linear")
        config = ToneConfig(**fields, tone_config={}, tone_connector_config=connector)
        yield KosmosForConditionalGeneration(config).eval()
    finally:
        for table, entries in before:
            _refill(table, entries)  # in their order, which other tests see


def test_forward_backward_and_cost(model, ids) -> None:
    """Tones land in their places; without any their encoder is touched; mistakes name both sides."""
    ids[0, 3:5], ids[1, 8:12] = TONE_SLOT, TONE_SLOT
    tones = torch.randn(3, TONES)
    features = model.model.encode(TONE, tones=tones)
    embeds = model.get_input_embeddings()(ids.clamp(max=96)).clone()
    embeds[0, 3:5], embeds[1, 8:12] = features[0], features[1:].flatten(0, 1)
    torch.testing.assert_close(model(input_ids=ids, tones=tones).logits, model(inputs_embeds=embeds).logits)
    with pytest.raises(
        ValueError, match=r"tones bring 2 tones of 2 features, that is 4 features, .* hold 6 placeholders"
    ):
        model(input_ids=ids, tones=tones[:2])
    with pytest.raises(ValueError, match=r"6 placeholders \(id 102\), but no tones were given"):
        model(input_ids=ids)
    model(input_ids=ids.clamp(max=96), labels=ids.clamp(max=96), dummy_image=True).loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if part_of(n) in ("tones", "spans", "connector")}
    assert all(gradient is None or not gradient.any() for gradient in gradients.values())
    assert gradients["model.tone_encoder.dense.weight"] is not None
    assert model_cost(model, 30).parameters["tones"] == sum(
        p.numel() for module in (model.model.tone_encoder, model.model.tone_connector) for p in module.parameters()
    )
    assert (TONE.count({"tones": tones}), TONE.count({})) == (3, 0)


@pytest.mark.parametrize("beams", [1, 2])
def test_generation(model, ids, beams: int) -> None:
    """A batch answers as its rows alone, beams too."""
    ids[0, 3:5], ids[1, 8:12] = TONE_SLOT, TONE_SLOT
    tones = torch.randn(3, TONES)
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": beams, "eos_token_id": None}
    both = model.generate(input_ids=ids, tones=tones, **options)
    assert both[0].tolist() == model.generate(input_ids=ids[:1], tones=tones[:1], **options)[0].tolist()
    assert both[1].tolist() == model.generate(input_ids=ids[1:], tones=tones[1:], **options)[0].tolist()
    if beams > 1:
        with pytest.raises(ValueError, match="tones bring 4 tones, but the placeholders take 3 of them"):
            model.generate(input_ids=ids, tones=torch.randn(4, TONES), **options)


@pytest.fixture
def processor() -> KosmosProcessor:
    """Whose tokenizer has a placeholder for tones."""
    tokenizer = train_tokenizer(["what is the red thing a tone or a circle"] * 5, 120, extra_tokens=["<tone_slot>"])
    return KosmosProcessor(KosmosImageProcessor(image_size=32), tokenizer, num_image_tokens=8)


@pytest.fixture
def fitting(model, processor) -> KosmosForConditionalGeneration:
    """The model, with the vocabulary and the placeholders of the processor."""
    fields = model.config.to_dict() | {"tone_connector_config": model.config.tone_connector_config}
    fields["text_config"]["vocab_size"] = len(processor.tokenizer)
    fields["span_encoder_config"]["model_config"]["vocab_size"] = len(processor.tokenizer)
    fields |= {modality.token: processor.token_id(modality.marks[1]) for modality in MODALITIES.values()}
    torch.manual_seed(0)
    return KosmosForConditionalGeneration(ToneConfig(**fields)).eval()


def documents() -> list[Document]:
    """Pictures, spans and tones, in an order that differs from document to document."""
    picture = io.BytesIO()
    Pictures.new("RGB", (20, 16), "red").save(picture, "PNG")
    parts = [Image(picture.getvalue()), Span("is the red thing"), Text("a circle"), Tone([1.0, 2.0]), Tone([3.0, 4.0])]
    return [Document(f"{n}", [*parts[n % 5 :], *parts[: n % 5], Text("or a tone")]) for n in range(10)]


def test_from_document_to_gradient(fitting, processor, tmp_path: Path) -> None:
    """Tones go through shards, packer and collate, beside images and spans, and backward reaches their encoder."""
    write_shards(tmp_path, documents())
    assert list(Corpus(tmp_path)[0].segments) == list(documents()[0].segments)
    config = DataConfig([SourceConfig("all", str(tmp_path))], row_tokens=96, rows_per_step=4, rows_per_micro_batch=2)
    batch = next(build_loader(config, processor))
    for micro, rows in zip(batch.micro_batches, (batch.inputs[:2], batch.inputs[2:]), strict=True):
        for modality in MODALITIES.values():
            assert len(micro[modality.inputs[0]]) == sum(row[modality.name] for row in rows) > 0
        assert (micro["input_ids"] == fitting.config.tone_token_id).sum() == TONES * len(micro["tones"])
    for row, counts in zip(rows_of(batch), batch.inputs, strict=True):
        assert {name: len(row.get(MODALITIES[name].inputs[0], ())) for name in MODALITIES} == counts
    first = {name: tensor for name, tensor in batch.micro_batches[0].items() if name != "source_ids"}
    first["pixel_values"] = processor.image_processor.normalize(first["pixel_values"])
    fitting(**first, dummy_image=True).loss.backward()
    gradient = fitting.model.tone_encoder.dense.weight.grad
    assert gradient is not None
    assert gradient.any()


def test_from_segments_to_an_answer(fitting, processor) -> None:
    """A prompt of segments is read as written, and an answer holds no placeholder."""
    tones = [Tone([1.0, 2.0]), Tone([0.5, -3.0])]
    encoded = processor.encode([[0], Text("what is"), tones[0], Span("the red thing"), tones[1]])
    assert [encoded.ids[placed.start] for placed in encoded.placed] == [
        processor.token_id(MODALITIES[placed.modality].marks[1]) for placed in encoded.placed
    ]
    inputs = {"input_ids": torch.tensor([encoded.ids]), **stack_inputs(encoded.placed)}
    torch.testing.assert_close(inputs["tones"], torch.tensor([tone.numbers for tone in tones]))
    fitting.take_rules(processor)
    assert set(fitting.generation_config.suppress_tokens) == {
        processor.token_id(mark) for mark in ("<image_slot>", "<span_slot>", "<tone_slot>")
    }
    written = fitting.generate(**inputs, max_new_tokens=5, do_sample=False, eos_token_id=None)[0, len(encoded.ids) :]
    with torch.no_grad():
        logits = fitting(**inputs).logits[0, -1]
    logits[fitting.generation_config.suppress_tokens] = -torch.inf
    assert written[0] == logits.argmax()
    with pytest.raises(ValueError, match="no segment that an encoder reads; those are image, span, tone"):
        processor.encode(["a tone"])
