"""Routed layers recomputed, saved, compiled, left out; what does not fit is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kosmos import KosmosConfig, KosmosForConditionalGeneration
from kosmos.convert_config import hf_kosmos2_fields
from kosmos.cost import model_cost
from kosmos_train.config import OptimConfig
from kosmos_train.optim import is_for_muon

from .test_routing import DOCUMENTS, TEXT, make, packed


def test_layers_computed_twice_and_saved(tmp_path: Path) -> None:
    """Gradient checkpointing gives the same gradients; a saved model computes the same; no answer, no missing one."""
    batch, gradients = packed([[0, 2, 1], [3, 4]]), []
    for checkpointing in (False, True):
        model = make().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(**batch).loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)
    model.zero_grad(set_to_none=True)
    text = packed([[1]])
    text.pop("entity_ids")
    model(**text, dummy_image=True).loss.backward()  # a rank without a persona
    assert {name for name, weight in model.named_parameters() if weight.grad is not None} == set(gradients[0])
    model.eval().save_pretrained(tmp_path)
    again = KosmosForConditionalGeneration.from_pretrained(tmp_path)
    assert again.config.text_config.routing_layers == [0, 2]
    with torch.no_grad():
        assert torch.equal(again(**batch, skip_logits=False).logits, model(**batch, skip_logits=False).logits)


def test_without_routing_nothing_is_there() -> None:
    """No parameter, no input, nothing that costs; its own classifier is no matrix for Muon."""
    plain, routed = make(layers=[]), make()
    more = set(routed.state_dict()) - set(plain.state_dict())
    assert more
    assert all(name.startswith("model.decoder.routing.") for name in more)
    costs = [model_cost(one, 32) for one in (plain, routed)]
    inner, width = 8, TEXT["hidden_size"]
    assert costs[1].token_flops - costs[0].token_flops == 6 * inner * (width + 1)
    assert costs[1].attention_flops == costs[0].attention_flops  # three sets are parts of one
    muon = OptimConfig(name="muon")
    matrices = [name for name, weight in routed.named_parameters() if is_for_muon(name, weight.shape, muon)]
    assert matrices
    assert not any("routing" in name for name in matrices)
    ids, _, labels = DOCUMENTS[1]
    with pytest.raises(ValueError, match=r"alpha was given, but the model has no text_config\.routing_layers"):
        plain(ids[None], alpha=0.5)
    with pytest.raises(ValueError, match="alpha was given"):
        plain.generate(ids[None], alpha=0.5, max_new_tokens=2, eos_token_id=95, pad_token_id=1)
    with torch.no_grad():  # a text without persona and context is read as by any layer
        labels = torch.where(torch.arange(len(ids)) < len(ids), ids, -100)
        weights = {name: weight for name, weight in routed.state_dict().items() if name in plain.state_dict()}
        plain.load_state_dict(weights)
        logits = [one(ids[None], shift_labels=labels[None], skip_logits=False).logits for one in (plain, routed)]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"routing_layers": [3]}, r"routing_layers \[3\]: name layers from 0 to 2"),
        ({"routing_layers": [1, 1]}, "each once"),
        ({"routing_layers": []}, "or leave routing_layers out"),
        ({"routing_layers": [-1]}, "routing_layers is -1"),
        ({"routing_layers": [0], "blockwise_causal_length": 16}, "do not go with blockwise_causal_length"),
        ({"routing_layers": [0], "routing_loss": -1.0}, r"routing_loss -1\.0: the weight of a loss is at least 0"),
        ({"routing_layers": [0], "model_type": "llama"}, "type llama has routing_layers, which only our own decoder"),
    ],
)
def test_what_does_not_fit_is_refused(text: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KosmosConfig(text_config={**TEXT, **text}, vision_config=None)


def test_routed_layers_compile_whole() -> None:
    """Such a layer is one graph, as ``model.compile`` asks, and computes the same."""
    model, batch = make().train(), packed([[0, 2, 1], [3, 4]])
    plain = model(**batch).loss
    model.model.decoder.layers[0].compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(model(**batch).loss, plain)


def test_kosmos2_has_no_routes() -> None:
    with pytest.raises(ValueError, match=r"routing_layers is \[0, 2\], Kosmos-2 has None"):
        hf_kosmos2_fields(make("sinusoidal").config)


def test_blocks_are_refused() -> None:
    ids, entities, _ = DOCUMENTS[0]
    with pytest.raises(ValueError, match="bidirectional attention, which routed layers"):
        make("rope")(ids[None], entity_ids=entities, block_ids=torch.zeros_like(ids[None]))
    with pytest.raises(ValueError, match="take a 2-D attention_mask"):
        make()(ids[None], entity_ids=entities, attention_mask=torch.ones(1, 1, len(ids), len(ids)))
