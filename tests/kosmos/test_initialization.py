"""The three initialisations by their statistics (MAGNETO section 3.2; torchscale's decoder as it runs)."""

from __future__ import annotations

import math

import pytest
import torch

GAIN = math.sqrt(math.log(2 * 3))  # 3 layers


def fresh(build, scheme: str):
    from kosmos import KosmosForConditionalGeneration

    config = build(images=False).config
    config.text_config.initialization = scheme
    config.text_config.hidden_size, config.text_config.intermediate_size = 128, 512
    torch.manual_seed(5)
    return KosmosForConditionalGeneration(config).model.decoder.requires_grad_(False)


@pytest.mark.parametrize("name", ["self_attn.q_proj", "self_attn.v_proj", "self_attn.out_proj", "ffn.fc1", "ffn.fc2"])
def test_projections(build, name: str) -> None:
    scaled = not name.endswith("q_proj")
    gain = GAIN if scaled else 1.0

    paper = fresh(build, "magneto_paper").layers[1].get_submodule(name)
    fan_out, fan_in = paper.weight.shape
    xavier = gain * math.sqrt(6 / (fan_in + fan_out))
    assert paper.weight.abs().max() == pytest.approx(xavier, rel=0.01)
    assert paper.weight.std() == pytest.approx(xavier / math.sqrt(3), rel=0.03)
    assert not paper.bias.any()

    torchscale = fresh(build, "magneto_torchscale").layers[1].get_submodule(name)
    bound = gain / math.sqrt(fan_in)
    assert torchscale.weight.abs().max() == pytest.approx(bound, rel=0.01)
    assert torchscale.weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert 0.9 * bound < torchscale.bias.abs().max() <= bound

    normal = fresh(build, "normal").layers[1].get_submodule(name)
    assert normal.weight.std() == pytest.approx(0.02, rel=0.05)
    assert not normal.bias.any()


@pytest.mark.parametrize(
    ("scheme", "std"), [("magneto_paper", 128**-0.5), ("magneto_torchscale", 128**-0.5), ("normal", 0.02)]
)
def test_embeddings_and_norms(build, scheme: str, std: float) -> None:
    decoder = fresh(build, scheme)
    weight = decoder.embed_tokens.weight
    assert weight[2:].std() == pytest.approx(std, rel=0.05)
    assert not weight[1].any(), "the padding row is zero"
    for norm in (decoder.layer_norm, decoder.layers[0].self_attn.inner_attn_ln, decoder.layers[0].ffn.ffn_layernorm):
        assert (norm.weight == 1).all()
        assert not norm.bias.any()


def test_only_missing_tensors_are_initialised(build, tmp_path) -> None:
    """A connector added to a checkpoint starts fresh, everything else is kept to the bit."""
    from kosmos import KosmosForConditionalGeneration

    model = build(images=False)
    model.save_pretrained(tmp_path)
    config = build().config
    again = KosmosForConditionalGeneration.from_pretrained(tmp_path, config=config, strict=False)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    assert float(again.model.connector.latent_query.std()) == pytest.approx(1.0, rel=0.2)
    assert torch.isfinite(again.model.vision_tower(torch.randn(1, 3, 32, 32))).all()
