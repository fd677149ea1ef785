"""How long a step takes on GPUs, part by part: what is computed, moved and sent, divided by assumed rates.

The FLOPs are those of kosmos/cost.py. The bytes come from kosmos-1's kernels: a block of 9 rows that inductor has
lowered to sm_90 reads and writes 5.47 GB outside of matrix products and attention, 108 pictures in tower and connector
27.6, counted on the lowered code (tests/simulated/test_lowering.py); as single kernels 10.6 and 87. They grow with
tokens and width. The rates are assumptions that nobody here has measured: each is a field of :class:`Assumptions`, an
argument of ``kosmos simulate``, and stands in its output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from kosmos.cost import PEAKS, Cost
from kosmos.loss import GPU_CHUNK

from .config import TrainConfig

# bytes of memory traffic for each token and unit of width of a block, forward and backward
COMPILED_BLOCK, EAGER_BLOCK = 145.0, 281.0
SMALL_BLOCK = 161.0  # of fewer tokens than twice the FFN's width: that norm's gradients are sums of their own then
COMPILED_FORWARD, EAGER_FORWARD = 49.5, 107.0
# FLOPs of encoders and connectors for each byte that they move outside of matrix products
COMPILED_ENCODER, EAGER_ENCODER = 778.0, 232.0
LOGIT_BYTES = 14.0  # written in fp32, read three times less one, gradients written in bf16
GRADIENT_BYTES = 12.0  # a parameter's gradient is put into a bucket, divided, taken out and added in fp32
KEPT_BY_OVERLAP = 0.35  # of a reduction, its last buckets are waited for


@dataclass(frozen=True)
class Assumptions:
    """Rates of one GPU and its links."""

    peak: float
    """TFLOP/s that MFU refers to, dense bf16 by data sheet."""
    products: float
    """TFLOP/s of matrix products."""
    attention: float
    """TFLOP/s of flash attention, forward and backward, heads 64 wide."""
    flex: float
    """TFLOP/s of flex attention."""
    memory: float
    """TB/s that kernels reach."""
    bus: float = 370.0
    """GB/s of the all-reduce's bus over all GPUs; 45 where a node of eight has one link of 400 Gb/s."""
    bubble: float = 2.0
    """ms of each micro-batch in which the GPU waits for the host."""
    loader: float = 2.0
    """ms of each step in which all wait for data."""
    rest: float = 5.0
    """ms of each step for the update and what is not counted."""


# Shares of the peak as for the H100 where nothing else is known; bandwidths by data sheet, kernels reach 85 % of them.
_BANDWIDTH = {"H100 NVL": 3.9, "H100 PCIe": 2.0, "H20": 4.0, "B200": 8.0, "B300": 8.0, "A100": 2.0}
GPUS = {
    "h100": Assumptions(peak=989, products=650, attention=420, flex=290, memory=2.85),
    "h200": Assumptions(peak=989, products=650, attention=420, flex=290, memory=4.0),
} | {
    name.lower().replace(" ", "-"): Assumptions(
        peak=(peak := PEAKS[name] / 1e12),
        products=round(0.657 * peak),
        attention=round(0.425 * peak),
        flex=round(0.293 * peak),
        memory=round(0.85 * bandwidth, 2),
    )
    for name, bandwidth in _BANDWIDTH.items()
}


@dataclass(frozen=True)
class Share:
    """What one GPU reads in a step: tokens of its rows, how many have a label, units of each modality."""

    tokens: float
    supervised: float
    units: dict[str, float]


def step_parts(
    config: TrainConfig, cost: Cost, text: Any, share: Share, gpus: int, rates: Assumptions
) -> dict[str, float]:
    """Return the ms of one step by part.

    Args:
        text: the decoder's config.
        share: of one GPU.
    """
    model, engine, micro = config.model, config.engine, config.micro_batches(gpus)
    encoded = sum(count * cost.unit_flops[name] for name, count in share.units.items())
    blocks = share.tokens * (cost.token_flops - cost.attention_flops - cost.output_flops)
    attended = share.tokens * cost.attention_flops * 3.5 / 3  # the backward pass computes the scores again
    width, layers, vocabulary = text.hidden_size, text.num_hidden_layers, text.vocab_size
    inner = getattr(text, "intermediate_size", None) or 4 * width
    small = config.data.rows_per_micro_batch * config.data.row_tokens < 2 * inner
    traffic = (SMALL_BLOCK if small else COMPILED_BLOCK) if model.compile else EAGER_BLOCK
    if model.activation_checkpointing:
        blocks, attended = blocks * 4 / 3, attended * 4.5 / 3.5
        traffic += COMPILED_FORWARD if model.compile else EAGER_FORWARD
    moved = share.tokens * width * layers * traffic
    moved += encoded / (COMPILED_ENCODER if model.compile else EAGER_ENCODER)
    chunks = micro * -(-share.supervised / micro // GPU_CHUNK)
    moved += share.supervised * vocabulary * LOGIT_BYTES + (8 * chunks + 10 * micro) * vocabulary * width
    learns = cost.trainable
    return {
        "matrix products": (blocks + share.supervised * cost.output_flops + encoded) / rates.products / 1e9,
        "attention": attended / (rates.flex if _uses_flex(config, text) else rates.attention) / 1e9,
        "elementwise": moved / rates.memory / 1e9,
        "gradient copies": micro * GRADIENT_BYTES * learns / rates.memory / 1e9,
        "communication": _communication(engine.zero_stage, learns, sum(cost.parameters.values()), micro, gpus, rates),
        "bubbles": micro * rates.bubble,
        "waiting for data": rates.loader,
        "rest": rates.rest,
    }


def _communication(stage: int, learns: float, held: float, micro: int, gpus: int, rates: Assumptions) -> float:
    """Return ms of reductions and gatherings in bf16, of which each byte crosses the bus (n - 1) / n times a phase."""
    phase = 2 * (gpus - 1) / gpus / rates.bus / 1e6  # ms a parameter and phase; an all-reduce has two
    reduced = {0: 2 * learns, 1: 2 * learns, 2: 2 * micro * learns * KEPT_BY_OVERLAP, 3: micro * learns}[stage]
    gathered = {0: 0.0, 1: learns, 2: learns, 3: 2 * micro * held}[stage]
    return (reduced + gathered) * phase


def _uses_flex(config: TrainConfig, text: Any) -> bool:
    """Whether some objective may ask for blocks that see both ways, which xPos forbids."""
    if getattr(text, "position_type", None) == "xpos":
        return False
    causal = {"causal", "fim", "cm3", "semi_causal"}
    objectives = [source.objective for source in config.data.sources]
    return any(one["name"] not in causal and one.get("bidirectional", True) for one in objectives)


def with_rates(gpu: str, **changes: float | None) -> Assumptions:
    """Return the assumptions for a GPU by name, some of them changed.

    Raises:
        ValueError: an unknown GPU, or a rate that is not above 0.
    """
    if gpu not in GPUS:
        raise ValueError(f"gpu {gpu!r} is not known; known are {', '.join(sorted(GPUS))}; or name its rates one by one")
    given = {name: value for name, value in changes.items() if value is not None}
    for name, value in given.items():
        if name in ("bubble", "loader", "rest") and not 0 <= value < math.inf:
            raise ValueError(f"--{name} {value}: milliseconds are 0 or more")
        if name not in ("bubble", "loader", "rest") and not 0 < value < math.inf:
            raise ValueError(f"--{name} {value}: a rate is above 0")
    return replace(GPUS[gpu], **given)
