"""What a model costs: the published numbers, formulas written out by hand, and torch's own counter over real passes."""

from __future__ import annotations

import fnmatch

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kosmos import KosmosConfig, KosmosForConditionalGeneration
from kosmos.cost import Cost, encode_flops, memory, model_cost
from kosmos.modalities import MODALITIES, SPAN, TYPICAL_SPAN


def preset_cost(name: str, length: int = 2048) -> Cost:
    with torch.device("meta"):
        return model_cost(KosmosForConditionalGeneration(KosmosConfig.preset(name)), length)


def test_kosmos2_has_the_published_number_of_parameters() -> None:
    parts = preset_cost("kosmos-2").parameters
    assert parts == {
        "embeddings": 133_195_776,
        "decoder": 1_209_094_144,
        "vision": 303_179_776,
        "connector": 19_015_680,
    }
    assert sum(parts.values()) == 1_664_485_376


def test_flops_equal_the_convention() -> None:
    """PaLM's count for KOSMOS-2's decoder at 2,048 tokens: 9.255 GFLOP a token, 8.651 with causal attention."""
    cost = preset_cost("kosmos-2")
    assert cost.token_flops + cost.attention_flops == pytest.approx(9.255e9, rel=1e-4)
    assert cost.token_flops == pytest.approx(8.651e9, rel=1e-4)


def test_encoders_cost_what_their_matrices_and_attention_do() -> None:
    """MetaLM: 24 blocks of 12 d² weights at d = 1024, of which two train, and a connector to 2,048, which no BOS meets.
    KOSMOS-1: 24 such blocks, of which one trains, over 257 tokens of 14 × 14 pixels, and a resampler."""
    length, width = TYPICAL_SPAN, 1024
    block = 2 * 12 * width**2 + 4 * length * width
    connector = 2 * width * 2048 * (length - 1) / length
    # the connector's input needs a gradient, as the last blocks learn; the first of these needs none for its own input
    back = 2 * (2 * block) - 3 * 2 * width**2
    assert preset_cost("metalm").unit_flops["span"] == pytest.approx(24 * block + back + 3 * connector, rel=1e-9)


@pytest.mark.parametrize("kind", ["linear", "mlp", "ffn3", "xconnector", "resampler"])
@pytest.mark.parametrize("frozen", ["", "model.decoder.layers.*", "model.*encoder.*"])
def test_flops_are_those_that_are_computed(kind: str, frozen: str, build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward of a text, two images and two spans, to the last operation; attention over the square."""
    monkeypatch.setattr(torch.backends.mha, "get_fastpath_enabled", lambda: False)  # its kernel is not counted
    connector = {"kind": kind, "num_queries": 8, "depth": 2, "num_heads": 4, "head_dim": 16}
    model = build(connector=kind, spans=True, span_connector_config=connector, vision={"train_last_blocks": 1})
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and not fnmatch.fnmatch(name, frozen))
    inputs = {"pixel_values": torch.randn(2, 3, 32, 32), "span_input_ids": torch.zeros(2, TYPICAL_SPAN).long()}
    ids = [5, 6]
    for modality in (one for one in MODALITIES.values() if one.given(inputs)):
        ids += [getattr(model.config, modality.token)] * sum(modality.places(model.config, inputs))
    cost = model_cost(model, len(ids))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.tensor([ids]), **inputs).logits.sum().backward()
    units = {name: modality.count(inputs) for name, modality in MODALITIES.items()}
    expected = cost.flops(len(ids), units) + len(ids) * cost.attention_flops
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-9)


def test_spans_of_other_lengths(build) -> None:
    """A batch costs what is computed, its padding too; what matters of the inputs is their shape."""
    model = build(spans=True, images=False).model
    ids = torch.zeros(3, 7).long()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.encode(SPAN, span_input_ids=ids, span_attention_mask=torch.ones(3, 7).long()).sum().backward()
    assert encode_flops(model, SPAN, {"span_input_ids": ids}) == counter.get_total_flops()


def test_counting_leaves_the_model_alone(build) -> None:
    model = build(spans=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    model_cost(model, 8)
    assert model.training
    assert all(parameter.grad is None and not parameter.is_meta for parameter in model.parameters())
    torch.testing.assert_close(model.state_dict(), before)


def test_zero_divides_memory() -> None:
    cost, config = preset_cost("tiny", 64), KosmosConfig.preset("tiny")

    def state(stage: int, gpus: int = 4, **how: object) -> float:
        sizes = memory(cost, config, 1, 64, checkpointing=False, zero_stage=stage, gpus=gpus, **how)
        return sum(size for name, size in sizes.items() if not name.startswith("activations"))

    totals = [state(stage) for stage in (0, 1, 2, 3)]
    assert totals == sorted(totals, reverse=True)
    assert totals[0] == 2 * sum(cost.parameters.values()) + 16 * cost.trainable
    assert totals[3] == totals[0] / 4
    assert state(1, offload=True) == totals[0] - 12 * cost.trainable
    assert state(0, precision="fp32") == 4 * sum(cost.parameters.values()) + 12 * cost.trainable
    with pytest.raises(ValueError, match="zero stage 2 with 0 GPUs"):
        state(2, gpus=0)
