"""Pre-LN, the block that sub-LN is compared with: its formula, its doors, and what cannot hold it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from kosmos import KosmosConfig, KosmosForConditionalGeneration
from kosmos.convert_config import hf_kosmos2_fields
from kosmos.decode_step import can_step


@pytest.fixture(scope="module")
def model() -> KosmosForConditionalGeneration:
    """A decoder of two pre-LN blocks."""
    torch.manual_seed(0)
    text = {"vocab_size": 90, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 32, "sub_layer_norm": False}
    config = KosmosConfig(text_config=text, vision_config=None, image_token_id=None)
    return KosmosForConditionalGeneration(config).eval()


def test_it_is_the_formula_without_the_inner_norms(model: KosmosForConditionalGeneration) -> None:
    """x + Wo·attention(LN(x)), then x + W2·gelu(W1·LN(x)), in evaluation and in training."""
    block = model.model.decoder.layers[0]
    assert not [name for name, _ in model.named_parameters() if "inner_attn_ln" in name or "ffn_layernorm" in name]
    hidden = torch.randn(2, 7, 32)
    ffn = block.ffn
    plain = F.linear(F.gelu(ffn.fc1(hidden)), ffn.fc2.weight, ffn.fc2.bias)
    torch.testing.assert_close(ffn(hidden), plain)
    attention = block.self_attn
    seen: list[torch.Tensor] = []
    hook = attention.out_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    ids = torch.randint(4, 90, (1, 9), generator=torch.Generator().manual_seed(0))
    model(input_ids=ids, labels=ids).loss.backward()
    hook.remove()
    first = block.self_attn_layer_norm(model.get_input_embeddings()(ids) * model.model.decoder.embed_scale)
    torch.testing.assert_close(seen[0][:, 0], attention.v_proj(first)[:, 0], atol=1e-5, rtol=1e-5)
    assert all(parameter.grad is not None for parameter in model.model.decoder.layers.parameters())


@torch.no_grad()
def test_it_writes_and_comes_back(model: KosmosForConditionalGeneration, tmp_path: Path) -> None:
    ids = torch.randint(4, 90, (1, 9), generator=torch.Generator().manual_seed(1))
    assert not can_step(model.model.decoder)
    written = model.generate(input_ids=ids, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=1)
    assert written[0, 9:].tolist() == model(input_ids=written[:, :-1]).logits[0, 8:].argmax(-1).tolist()
    model.save_pretrained(tmp_path)
    again = KosmosForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert not again.config.text_config.sub_layer_norm
    assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)


def test_kosmos2_has_no_such_block(model: KosmosForConditionalGeneration) -> None:
    with pytest.raises(ValueError, match="sub_layer_norm is False, Kosmos-2 has True"):
        hf_kosmos2_fields(model.config)
