"""The self-attention of open_clip's towers without copies gives what torch's gives."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from kosmos.tower_attention import TowerAttention


def as_torch_has_it(model: Any) -> Any:
    """A copy whose towers attend by ``nn.MultiheadAttention``."""
    twin = copy.deepcopy(model)
    found = [module for module in twin.modules() if isinstance(module, TowerAttention)]
    assert found
    for module in found:
        module.__class__ = nn.MultiheadAttention
    return twin


def test_twenty_steps_lose_the_same(build) -> None:
    """A model of which the tower's last block learns too: losses of 20 steps to 1e-6, then features as well."""
    model = build(vision={"train_last_blocks": 1}).train()
    twin = as_torch_has_it(model)
    draw = torch.Generator().manual_seed(0)
    losses: list[list[float]] = [[], []]
    optimisers = [torch.optim.SGD(one.parameters(), lr=0.1) for one in (model, twin)]
    for _ in range(20):
        pixels = torch.randn(2, 3, 32, 32, generator=draw)
        ids = torch.randint(4, 90, (2, 24), generator=draw)
        ids[:, 1:9] = model.config.image_token_id
        labels = torch.where(ids.roll(-1, 1) == model.config.image_token_id, -100, ids.roll(-1, 1))
        for number, one in enumerate((model, twin)):
            loss = one(input_ids=ids, shift_labels=labels, pixel_values=pixels).loss
            loss.backward()
            losses[number].append(loss.item())
            optimisers[number].step()
            optimisers[number].zero_grad()
    torch.testing.assert_close(*losses, rtol=0, atol=1e-6)
    assert losses[0][-1] < losses[0][0]
    with torch.no_grad():
        features = [one.get_image_features(pixels).pooler_output for one in (model, twin)]
        torch.testing.assert_close(*features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "asked", [{}, {"need_weights": False, "attn_mask": torch.zeros(5, 5)}, {"key_padding_mask": torch.zeros(2, 5)}]
)
def test_anything_else_is_left_to_torch(asked: dict[str, Any]) -> None:
    """Weights, masks and padding."""
    attention = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    states = torch.randn(2, 5, 16)
    expected = attention(states, states, states, **asked)
    attention.__class__ = TowerAttention
    found = attention(states, states, states, **asked)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
