"""Compiled blocks: one graph, no break, and no graph more whatever the packing of the rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fake_cuda import build, fake_cuda, on_cuda, rows
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from kosmos import KosmosConfig
from kosmos.attention import plan_documents

PACKINGS = 10


def config_of(dropout: float) -> KosmosConfig:
    config = KosmosConfig.preset("tiny")
    config.text_config.dropout = dropout
    return config


def packed(config: KosmosConfig, way: str, seed: int) -> dict[str, Any]:
    """Two rows of 256 with a picture each; ``lengths``: and with documents of random lengths."""
    batch = rows(config, 2, 256, images=1)
    draw = torch.Generator().manual_seed(seed)
    if way != "causal":
        batch["document_ids"] = (torch.rand(2, 256, generator=draw) < 0.03).long().cumsum(1)
    return batch


@pytest.mark.simulated
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("way", ["causal", "lengths"])
def test_one_graph_for_all_packings(way: str, recomputed: bool, dropout: float) -> None:
    """All blocks of the model and ten random packings, forward and backward, share one graph."""
    torch._dynamo.reset()
    counters.clear()
    config, compiler = config_of(dropout), CompileCounter()
    with fake_cuda() as mode:
        with mode:
            model = build(config)
        if recomputed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        for layer in model.model.decoder.layers:
            layer.compile(backend=compiler)
        for seed in range(PACKINGS):
            batch = packed(config, way, seed)
            layout = model.model.describe_rows(**batch)
            with mode:
                moved = {name: on_cuda(value) for name, value in {**batch, "layout": layout}.items()}
                moved["pixel_values"] = moved["pixel_values"].bfloat16()
                found = plan_documents(moved["document_ids"], None, True, True, moved["layout"].packing)
                assert found.way == way
                model(**moved, num_items_in_batch=1.0).loss.backward()
    assert not counters["graph_break"], dict(counters["graph_break"])
    assert compiler.frame_count == 1
