"""A modality from outside: one entry in the table, and model, beams and training read it like images and spans."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from kosmos import KosmosConfig, KosmosForConditionalGeneration
from kosmos.configuration_kosmos import KosmosConnectorConfig, checked
from kosmos.cost import model_cost, part_of
from kosmos.modalities import MODALITIES, Modality

TONE_SLOT, TONES = 102, 2


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
    build=ToneEncoder,
    read=lambda model, tones: model.tone_connector(model.tone_encoder(tones)),
    places=lambda config, inputs: torch.full((len(inputs["tones"]),), TONES),
    smallest=lambda config, device: {"tones": torch.zeros(1, TONES, device=device)},
    units=lambda inputs: len(inputs["tones"]),
)


@pytest.fixture
def model(build, monkeypatch: pytest.MonkeyPatch) -> KosmosForConditionalGeneration:
    """Images, spans and tones."""
    monkeypatch.setitem(MODALITIES, "tone", TONE)
    fields = build(spans=True).config.to_dict()
    torch.manual_seed(0)
    connector = KosmosConnectorConfig(kind="linear")
    config = ToneConfig(**fields, tone_config={}, tone_connector_config=connector)
    return KosmosForConditionalGeneration(config).eval()


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
