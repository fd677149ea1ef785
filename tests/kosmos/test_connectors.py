"""Connectors against other implementations or the formula, and their sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import Kosmos2Config
from transformers.models.kosmos2.modeling_kosmos2 import Kosmos2ImageToTextProjection

from kosmos import KosmosForConditionalGeneration
from kosmos.configuration_kosmos import KosmosConfig
from kosmos.connectors import build_connector
from kosmos.encoder_configs import KosmosConnectorConfig


@torch.no_grad()
def test_xconnector_equals_kosmos2() -> None:
    text = {"embed_dim": 32, "attention_heads": 4, "layers": 1, "ffn_dim": 32, "vocab_size": 10}
    theirs = Kosmos2ImageToTextProjection(
        Kosmos2Config(text_config=text, vision_config={"hidden_size": 16}, latent_query_num=5)
    ).eval()
    ours = build_connector(KosmosConnectorConfig(kind="xconnector", num_queries=5), 16, 32, 4)
    ours.load_state_dict(theirs.state_dict())
    features = torch.randn(3, 7, 16)
    torch.testing.assert_close(ours(features), theirs(features)[0])


@torch.no_grad()
@pytest.mark.parametrize(("kind", "layers"), [("linear", 1), ("mlp", 2), ("ffn3", 3)])
def test_feed_forward_connectors(kind: str, layers: int) -> None:
    connector = build_connector(KosmosConnectorConfig(kind=kind), 16, 32, 4)
    assert len(connector.layers) == layers
    features = torch.randn(2, 7, 16)
    expected = features
    for index, layer in enumerate(connector.layers):
        expected = F.gelu(expected) if index else expected
        expected = expected @ layer.weight.T + layer.bias
    torch.testing.assert_close(connector(features), expected)


@torch.no_grad()
def test_resampler_equals_the_formula() -> None:
    """Flamingo's layer with one head, written with matrices and a softmax."""
    connector = build_connector(KosmosConnectorConfig(kind="resampler", num_queries=3, depth=2, num_heads=1), 16, 32, 4)
    features = torch.randn(1, 7, 16)
    latents = connector.latents[None]
    for layer in connector.layers:
        normed = layer.norm_latents(latents)
        memory = torch.cat([layer.norm_media(features), normed], dim=1)
        key, value = (memory @ layer.to_kv.weight.T).chunk(2, dim=-1)
        scores = (normed @ layer.to_q.weight.T) @ key.transpose(1, 2) / 8  # head width 64
        latents = latents + scores.softmax(-1) @ value @ layer.to_out.weight.T
        latents = latents + F.gelu(layer.norm_ffn(latents) @ layer.fc1.weight.T) @ layer.fc2.weight.T
    expected = connector.dense(connector.norm(latents)) / 32**0.5
    torch.testing.assert_close(connector(features), expected, atol=1e-6, rtol=1e-4)


def test_wrong_number_of_image_tokens_is_refused(build) -> None:
    fields = build(connector="xconnector").config.to_dict()
    fields["connector_config"]["kind"] = "linear"
    config = KosmosConfig(**fields)
    with pytest.raises(ValueError, match="the linear connector makes 17 features an image, but num_image_tokens is 8"):
        KosmosForConditionalGeneration(config)
