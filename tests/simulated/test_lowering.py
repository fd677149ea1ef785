"""kosmos-1 lowered to an H100: the bytes that its kernels move, and registers that do not spill.

The roofline's constants (roofline.py) are what is counted here, at the micro-batch of kosmos1.yaml.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from lowering import Lowered, hopper, lower, resources

from kosmos import KosmosConfig, KosmosForConditionalGeneration
from kosmos.attention import AttentionPlan
from kosmos.connectors import build_connector
from kosmos.cost import model_cost
from kosmos.decoder import KosmosDecoder
from kosmos.encoders import build_vision_tower
from kosmos.loss import _softmax_gradient
from kosmos.masks import flex_mask
from kosmos_train.build import block_options
from kosmos_train.roofline import COMPILED_BLOCK, COMPILED_ENCODER, COMPILED_FORWARD, LOGIT_BYTES, SMALL_BLOCK

ROWS, LENGTH, IMAGES = 9, 2048, 12
WIDTH = 2048
CALLED = {
    "causal": "aten._scaled_dot_product_flash_attention",
    "lengths": "torch_attn._varlen_attn",
    "flex": "",
}


def built(make: Any, *arguments: Any) -> Any:
    """A part of the model in bf16 on the described device."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            return make(*arguments)
    finally:
        torch.set_default_dtype(torch.float32)


def plan_of(way: str, rows: int) -> AttentionPlan:
    documents = torch.zeros(rows, LENGTH, dtype=torch.long, device="cuda")
    if way == "flex":
        return AttentionPlan("flex", block_mask=flex_mask(documents, documents))
    borders = torch.zeros(40, dtype=torch.int32, device="cuda")
    return AttentionPlan("lengths", borders=borders) if way == "lengths" else AttentionPlan("causal")


@cache
def block(way: str, rows: int) -> list[Lowered]:
    """Forward and backward of a block of the decoder as a run compiles it."""
    config = KosmosConfig.preset("kosmos-1").text_config
    config.num_hidden_layers, config.position_type = 1, "rope" if way == "flex" else "xpos"
    with hopper() as mode, mode:
        decoder = built(KosmosDecoder, config).train()
        places = torch.arange(LENGTH, device="cuda").expand(rows, LENGTH)
        rotation, plan, layer = decoder.positions.rotation(places), plan_of(way, rows), decoder.layers[0]
        hidden = torch.empty(rows, LENGTH, WIDTH, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        return lower(lambda h: layer(h, rotation, plan, past_key_values=None), hidden, options=block_options())


def moved(graphs: list[Lowered]) -> float:
    return sum(graph.moved for graph in graphs)


@pytest.mark.simulated
def test_bytes_of_a_block() -> None:
    """3 rows: at most 2.15 GB outside of products and attention; 9 rows: what the roofline counts with."""
    three = moved(block("causal", 3))
    print(f"3 rows: {three / 1e9:.3f} GB")
    assert three <= 2.15e9
    assert three / (3 * LENGTH * WIDTH) == pytest.approx(SMALL_BLOCK, rel=0.02)
    forward, backward = block("causal", ROWS)
    each = ROWS * LENGTH * WIDTH
    print(f"9 rows: {forward.moved / 1e9:.3f} + {backward.moved / 1e9:.3f} GB")
    assert (forward.moved + backward.moved) / each == pytest.approx(COMPILED_BLOCK, rel=0.02)
    assert forward.moved / each == pytest.approx(COMPILED_FORWARD, rel=0.02)


@pytest.mark.simulated
@pytest.mark.parametrize("way", list(CALLED))
def test_nothing_spills(way: str, tmp_path: Path) -> None:
    """Nothing but attention is left to torch, and no kernel of attention, no joined sum keeps registers in memory."""
    graphs = block(way, ROWS)
    assert len(graphs) == 2
    for graph in graphs:
        called = {name for name in graph.aten if not name.startswith((CALLED[way] or "-", "inductor."))}
        assert called == set(), graph.aten
    kernels = {name: source for graph in graphs for name, source in graph.kernels.items()}
    chosen = {name: source for name, source in kernels.items() if name.startswith(("triton_tem", "triton_per"))}
    assert way != "flex" or sum(name.startswith("triton_tem") for name in chosen) >= 2
    for name, source in chosen.items():
        found = resources(name, source, tmp_path)
        print(f"{way}: {name[:70]}: {found}")
        assert found.spills == 0, name


@pytest.mark.simulated
def test_bytes_of_the_loss() -> None:
    """The compiled pass reads the logits twice, which the count takes for once, and writes their gradients."""
    tokens, vocabulary = 4096, 64011
    with hopper() as mode, mode:
        logits = torch.empty(tokens, vocabulary, device="cuda")
        labels = torch.zeros(tokens, 1, dtype=torch.long, device="cuda")
        (graph,) = lower(lambda one, two: _softmax_gradient(one, two, torch.bfloat16), logits, labels)
    assert len(graph.calls) == 1
    written = 4.0  # by the product
    assert graph.moved / (tokens * vocabulary) + 4 + written == pytest.approx(LOGIT_BYTES, rel=0.01)


@pytest.mark.simulated
def test_bytes_of_pictures() -> None:
    """23 frozen blocks, one that learns, and the connector; embeddings and last norm, not compiled, about 20 passes."""
    config, count = KosmosConfig.preset("kosmos-1"), ROWS * IMAGES
    with torch.device("meta"):
        flops = count * model_cost(KosmosForConditionalGeneration(config), LENGTH).unit_flops["image"]
    with hopper() as mode, mode:
        tower = built(build_vision_tower, config.vision_config)
        text = config.text_config
        connector = built(build_connector, config.connector_config, 1024, WIDTH, text.num_attention_heads)
        features = torch.empty(count, 257, 1024, device="cuda", dtype=torch.bfloat16)
        with torch.no_grad():
            frozen = lower(lambda one: tower.blocks()[0](one), features, dynamic=True)
        learns = lower(lambda one: tower.blocks()[-1](one), features, dynamic=True)
        joined = lower(lambda one: connector(one), features.clone().requires_grad_(), dynamic=True)
    sizes = [23 * moved(frozen), moved(learns), moved(joined), 20.0 * 2 * features.numel()]
    print("GB:", [round(size / 1e9, 2) for size in sizes], f"{flops / sum(sizes):.0f} FLOPs a byte")
    assert flops / sum(sizes) == pytest.approx(COMPILED_ENCODER, rel=0.03)
