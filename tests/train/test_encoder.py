"""A text encoder pretrained by masked language modelling, and handed to the model as its span encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from kosmos.configuration_kosmos import KosmosSpanEncoderConfig
from kosmos.encoder_weights import load_encoder_weights
from kosmos.encoders import SpanEncoder
from kosmos.processing_kosmos import load_processor
from kosmos_train.parts.encoder import EncoderConfig, batches, train_encoder

MODEL = {
    "model_type": "bert",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.fixture
def config(values: dict[str, Any]) -> EncoderConfig:
    """A few steps on the tiny world's text."""
    shards = [values["data"]["sources"][0]["shards"]]
    return EncoderConfig(MODEL, values["processor"], shards, window=48, steps=40, batch_size=16, lr=1e-2, warmup=5)


@pytest.mark.parametrize("muon_lr", [0.0, 0.02])
def test_it_learns_and_becomes_a_span_encoder(config: EncoderConfig, tmp_path: Path, muon_lr: float) -> None:
    """Its loss falls below the uniform guess; SpanEncoder reads the folder and gives the same states."""
    config.muon_lr = muon_lr
    losses = train_encoder(config, tmp_path / "encoder")
    assert losses[0] > 3.5
    assert sum(losses[-5:]) / 5 < losses[0] - 0.8
    saved = AutoModel.from_pretrained(tmp_path / "encoder", add_pooling_layer=False).eval()
    fields = MODEL | {"vocab_size": saved.config.vocab_size, "pad_token_id": 1}
    encoder = SpanEncoder(KosmosSpanEncoderConfig(model_config=fields))
    load_encoder_weights(encoder, tmp_path / "encoder")
    ids = torch.tensor([[0, 10, 11, 12]])
    with torch.no_grad():
        assert torch.allclose(encoder(ids), saved(input_ids=ids).last_hidden_state[0, 1:], atol=1e-6)


def test_batches_ask_for_fifteen_percent(config: EncoderConfig) -> None:
    processor = load_processor(config.processor)
    asked = total = 0
    stream = batches(config, processor)
    for _ in range(10):
        ids, mask, labels = next(stream)
        asked, total = asked + int((labels >= 0).sum()), total + int(mask.sum())
        assert ids.shape == mask.shape == labels.shape
        assert ids.shape[1] <= config.window
        assert (ids[mask == 0] == processor.tokenizer.pad_token_id).all()
        assert (labels[mask == 0] == -100).all()
    assert 0.12 < asked / total < 0.17


def test_mistakes_are_named(config: EncoderConfig, tmp_path: Path) -> None:
    config.model = MODEL | {"model_type": "berd"}
    with pytest.raises(ValueError, match="model_type='berd'"):
        train_encoder(config, tmp_path)
    config.model, config.window = MODEL, 128
    with pytest.raises(ValueError, match=r"window=128 is longer than model\.max_position_embeddings=64"):
        train_encoder(config, tmp_path)
    config.window, config.shards = 48, []
    with pytest.raises(ValueError, match="no shards given"):
        train_encoder(config, tmp_path)
