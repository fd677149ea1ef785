"""The decoder against torchscale's golden logits, and every way of decoding against the plain forward pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import DynamicCache, StaticCache

from kosmos import KosmosConfig, KosmosForConditionalGeneration
from kosmos.decoder import GeluNorm

GOLDEN = Path(__file__).parents[1] / "fixtures" / "kosmos" / "torchscale" / "subln_xpos"
POSITIONS = ("xpos", "rope", "sinusoidal", "learned_2d")


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


@torch.no_grad()
def test_equals_torchscale() -> None:
    expected = load_file(GOLDEN / "expected.safetensors")
    text = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3}
    config = KosmosConfig(text_config={**text, "num_attention_heads": 4}, image_token_id=None)
    model = KosmosForConditionalGeneration(config).eval()
    state = load_file(GOLDEN / "decoder.safetensors")
    state.pop("output_projection.weight", None)
    model.model.decoder.load_state_dict(state)
    close(model(input_ids=expected["input_ids"]).logits, expected["logits"])


@torch.no_grad()
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("step", [1, 7])
def test_cached_decoding_equals_plain(build, ids, position: str, static: bool, step: int) -> None:
    model = build(position=position, images=False)
    expected = model(input_ids=ids).logits
    config = model.config.get_text_config()
    cache = StaticCache(config=config, max_cache_len=40) if static else DynamicCache(config=config)
    parts = [model(input_ids=ids[:, :9], past_key_values=cache, use_cache=True).logits]
    for start in range(9, 30, step):
        parts.append(model(input_ids=ids[:, start : start + step], past_key_values=cache, use_cache=True).logits)
    close(torch.cat(parts, dim=1), expected)


@torch.no_grad()
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_left_padding_changes_nothing(build, ids, position: str, implementation: str) -> None:
    model = build(position=position, images=False)
    model.set_attn_implementation(implementation)
    expected = model(input_ids=ids[1:, :20]).logits
    padded = ids.clone()
    padded[1] = torch.cat([torch.ones(10, dtype=torch.long), ids[1, :20]])
    mask = torch.ones_like(ids)
    mask[1, :10] = 0
    logits = model(input_ids=padded, attention_mask=mask).logits
    close(logits[1:, 10:], expected)
    close(logits[:1], model(input_ids=ids[:1]).logits)
    assert torch.isfinite(logits).all()


@torch.no_grad()
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_packed_documents_equal_separate_rows(build, ids, position: str, implementation: str) -> None:
    model = build(position=position, images=False)
    model.set_attn_implementation(implementation)
    documents = torch.tensor([[0] * 10 + [1] * 12 + [-1] * 8, [5] * 30])
    restart = torch.tensor([[*range(10), *range(12), *[0] * 8], [*range(30)]])
    # xPos and RoPE see distances only, so they need no restart of the positions
    positions = restart if position in ("sinusoidal", "learned_2d") else None
    logits = model(input_ids=ids, document_ids=documents, position_ids=positions).logits
    for row, start, stop in ((0, 0, 10), (0, 10, 22), (1, 0, 30)):
        close(logits[row : row + 1, start:stop], model(input_ids=ids[row : row + 1, start:stop]).logits)


@torch.no_grad()
def test_eager_equals_sdpa(build, ids) -> None:
    model = build(images=False)
    expected = model(input_ids=ids).logits
    model.set_attn_implementation("eager")
    close(model(input_ids=ids).logits, expected)


@torch.no_grad()
def test_xpos_ignores_a_common_offset(build, ids) -> None:
    model = build(images=False)
    far = torch.arange(30)[None] + 1500
    close(model(input_ids=ids, position_ids=far).logits, model(input_ids=ids).logits)


@torch.no_grad()
def test_blockwise_causal_attention(build) -> None:
    """Against a model given the window only: with l = 8 the last block sees its own 4 tokens and the 4 before."""
    model = build(images=False, text={"blockwise_causal_length": 8, "num_hidden_layers": 1})
    row = torch.randint(4, 90, (1, 24), generator=torch.Generator().manual_seed(3))
    logits = model(input_ids=row).logits
    close(logits[:, 20:], model(input_ids=row[:, 16:]).logits[:, 4:])
    cache = DynamicCache(config=model.config.get_text_config())
    stepped = [model(input_ids=row[:, t : t + 1], past_key_values=cache, use_cache=True).logits for t in range(24)]
    close(torch.cat(stepped, dim=1), logits)
    plain = build(images=False, text={"num_hidden_layers": 1})
    close(logits[:, :8], plain(input_ids=row[:, :8]).logits)
    assert not torch.allclose(logits[:, 20:], plain(input_ids=row).logits[:, 20:], atol=1e-3)


def test_gradient_checkpointing_gives_the_same_gradients(build, ids) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = build(images=False).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(input_ids=ids, labels=ids).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputed_gelu_equals_the_plain_one(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    inner = torch.randn(3, 5, 16, dtype=dtype, requires_grad=True)
    norm = torch.nn.LayerNorm(16, dtype=dtype)
    with torch.no_grad():
        norm.weight.add_(0.3 * torch.randn(16))
        norm.bias.add_(0.3 * torch.randn(16))
    leaves, weight = (inner, norm.weight, norm.bias), torch.randn(3, 5, 16, dtype=dtype)
    plain, ours = norm(F.gelu(inner)), GeluNorm.apply(inner, norm.weight, norm.bias, norm.eps)
    assert torch.equal(ours, plain)
    expected = torch.autograd.grad((plain * weight).sum(), leaves)
    for a, b in zip(torch.autograd.grad((ours * weight).sum(), leaves), expected, strict=True):
        assert torch.equal(a, b)


def test_hidden_states_and_attentions_are_recorded(build, ids) -> None:
    model = build(images=False)
    model.set_attn_implementation("eager")
    outputs = model(input_ids=ids, output_hidden_states=True, output_attentions=True)
    assert len(outputs.hidden_states) == 4
    assert len(outputs.attentions) == 3
    close(outputs.attentions[0].sum(-1), torch.ones(2, 4, 30))
