"""Where a step's time goes on a GPU: kernels of attention, a block, the loss, the tower, a whole step; and decoding.

Each function returns numbers by name: milliseconds, TFLOP/s, tokens a second. On a CPU, with a tiny model, all of them
run too, which says that the script works and nothing else.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import kosmos.attention as attention
from kosmos import KosmosConfig, KosmosForConditionalGeneration
from kosmos.cost import device_peak, model_cost
from kosmos.loss import cross_entropy
from kosmos.masks import flex_mask
from kosmos_train.build import block_options, compile_blocks

Numbers = dict[str, float]


@dataclass(frozen=True)
class Size:
    """What is measured."""

    preset: str
    rows: int
    length: int
    images: int
    """Pictures in a row."""
    rounds: int


FULL = Size("kosmos-1", rows=9, length=2048, images=12, rounds=10)
TINY = Size("tiny", rows=1, length=64, images=1, rounds=1)


def milliseconds(run: Callable[[], object], device: torch.device, rounds: int, warm: int = 3) -> float:
    """The median time of ``run``, after some that are not counted on a GPU."""
    times, warm = [], warm if device.type == "cuda" else 0
    for repetition in range(rounds + warm):
        _wait(device)
        began = time.perf_counter()
        run()
        _wait(device)
        if repetition >= warm:
            times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def build(size: Size, device: torch.device) -> Any:
    """The preset's model in bf16, in training."""
    torch.manual_seed(0)
    with torch.device(device):
        return KosmosForConditionalGeneration(KosmosConfig.preset(size.preset)).to(torch.bfloat16).train()


def batch_of(config: KosmosConfig, size: Size, documents: int) -> dict[str, Tensor]:
    """Packed rows with their pictures, on the CPU."""
    ids = torch.randint(4, 200, (size.rows, size.length), generator=torch.Generator().manual_seed(0))
    slots, side = config.num_image_tokens, config.vision_config.image_size
    for index in range(size.images):
        ids[:, 2 + index * (slots + 20) :][:, :slots] = config.image_token_id
    labels, place = ids.roll(-1, 1), torch.arange(size.length).repeat(size.rows, 1)
    return {
        "input_ids": ids,
        "shift_labels": labels.masked_fill(labels == config.image_token_id, -100),
        "document_ids": place * documents // size.length,
        "position_ids": place,
        "loss_weight": torch.ones(size.rows, size.length),
        "pixel_values": torch.randn(size.rows * size.images, 3, side, side).bfloat16(),
    }


def attention_kernels(size: Size, device: torch.device) -> Numbers:
    """Ways of attending over 3 rows: forward, forward with backward, both also in TFLOP/s of the causal half."""
    text = KosmosConfig.preset(size.preset).text_config
    heads, rows, length = text.num_attention_heads, 3, size.length
    width = text.hidden_size // heads
    states = [
        torch.randn(rows, length, heads, width, device=device, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    ]
    place = torch.arange(length, device=device).repeat(rows, 1)
    documents = place * 5 // length
    blocks = torch.where(place % 64 < 16, place // 64, -1)
    borders = torch.arange(0, rows * length + 1, length, dtype=torch.int32, device=device)
    plans = {"causal": attention.AttentionPlan("causal")}
    if device.type == "cuda":
        plans["lengths, one document a row"] = attention.AttentionPlan("lengths", borders=borders)
        plans["lengths, five documents"] = attention.plan_documents(documents, None, True, True)
        plans["flex, blocks"] = attention.plan_documents(documents, blocks, True, True)
    flops = 4 * rows * heads * length**2 * width / 2
    found: Numbers = {}

    def forward(plan: attention.AttentionPlan) -> Tensor:
        return attention.attend(plan, *states, scaling=width**-0.5)

    for name, plan in plans.items():
        one = milliseconds(lambda: forward(plan), device, size.rounds)  # noqa: B023
        both = milliseconds(lambda: forward(plan).sum().backward(), device, size.rounds)  # noqa: B023
        found |= {f"{name}: forward ms": one, f"{name}: forward TFLOP/s": flops / one / 1e9}
        found |= {f"{name}: with backward ms": both, f"{name}: with backward TFLOP/s": 3.5 * flops / both / 1e9}
    if device.type == "cuda":
        found["block mask in closed form, host ms"] = milliseconds(
            lambda: flex_mask(documents, blocks), device, size.rounds
        )
    return found


def products(size: Size, device: torch.device) -> Numbers:
    """TFLOP/s of the matrix products of a block, at the rows of a micro-batch."""
    text = KosmosConfig.preset(size.preset).text_config
    width, inner, tokens = text.hidden_size, text.intermediate_size, size.rows * size.length
    found = {}
    for rows, columns in ((width, width), (width, inner), (inner, width)):
        left = torch.randn(tokens, rows, device=device, dtype=torch.bfloat16)
        right = torch.randn(columns, rows, device=device, dtype=torch.bfloat16)
        took = milliseconds(lambda: F.linear(left, right), device, size.rounds)  # noqa: B023
        found[f"{tokens} × {rows} × {columns}: TFLOP/s"] = 2 * tokens * rows * columns / took / 1e9
    return found


def block(size: Size, device: torch.device, compiled: bool) -> Numbers:
    """Forward and backward of one block of the decoder, as it is written and compiled."""
    model = build(size, device)
    decoder, text = model.model.decoder, model.config.text_config
    hidden = torch.randn(3, size.length, text.hidden_size, device=device, dtype=torch.bfloat16, requires_grad=True)
    rotation = decoder.positions.rotation(torch.arange(size.length, device=device).repeat(3, 1))
    layer, plan, found = decoder.layers[0], attention.AttentionPlan("causal"), {}
    for name in ("eager", "compiled") if compiled else ("eager",):
        if name == "compiled":
            layer.compile(options=block_options())
        found[f"{name}: ms"] = milliseconds(
            lambda: layer(hidden, rotation, plan, past_key_values=None).sum().backward(), device, size.rounds
        )
    return found


def loss(size: Size, device: torch.device) -> Numbers:
    """Loss and its gradients over the rows of a micro-batch, by tokens multiplied at a time."""
    text = KosmosConfig.preset(size.preset).text_config
    shape = (size.rows, size.length, text.hidden_size)
    hidden = torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(text.vocab_size, text.hidden_size, device=device, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.randint(4, 200, shape[:2], device=device)
    labels[:, ::3] = -100  # about what slots of pictures take
    return {
        f"chunk {chunk}: ms": milliseconds(
            lambda: cross_entropy(hidden, weight, labels, chunk=chunk).loss.backward(),  # noqa: B023
            device,
            size.rounds,
        )
        for chunk in (2048, 4096, 8192)
    }


def tower(size: Size, device: torch.device, compiled: bool) -> Numbers:
    """Vision tower and connector over the pictures of a micro-batch, forward and backward."""
    model = build(size, device)
    side, count = model.config.vision_config.image_size, size.rows * size.images
    pixels = torch.randn(count, 3, side, side, device=device, dtype=torch.bfloat16)
    found = {}
    for name in ("eager", "compiled") if compiled else ("eager",):
        if name == "compiled":
            compile_blocks(model.model)
        found[f"{name}, {count} pictures: ms"] = milliseconds(
            lambda: model.get_image_features(pixels).pooler_output.sum().backward(), device, size.rounds
        )
    return found


def step(size: Size, device: torch.device, compiled: bool) -> Numbers:
    """A micro-batch as the engine runs it, without DeepSpeed: rows of one document and packed ones; MFU and memory."""
    model = build(size, device)
    if compiled:
        compile_blocks(model.model)
    cost, peak, found = model_cost(model, size.length), device_peak(), {}
    for name, documents in (("one document a row", 1), ("five documents", 5)):
        batch = batch_of(model.config, size, documents)
        layout = model.model.describe_rows(**batch).map(lambda tensor: tensor.to(device))
        inputs = {key: value.to(device) for key, value in batch.items()}

        def run() -> None:
            model(**inputs, layout=layout, num_items_in_batch=1.0, dummy_image=True).loss.backward()  # noqa: B023
            model.zero_grad()

        took = milliseconds(run, device, size.rounds)
        tokens, supervised = batch["input_ids"].numel(), int((batch["shift_labels"] >= 0).sum())
        units = {"image": float(size.rows * size.images)}
        found |= {f"{name}: ms": took, f"{name}: tokens/s": 1e3 * tokens / took}
        if peak is not None:
            found[f"{name}: MFU %"] = 1e5 * cost.flops(tokens, units, supervised) / took / peak
    if device.type == "cuda":
        found["peak memory GiB"] = torch.cuda.max_memory_allocated(device) / 2**30
        found |= {f"kernel {name}: ms": spent for name, spent in _profile(run)}
    return found


def _profile(run: Callable[[], None]) -> Iterator[tuple[str, float]]:
    """The 15 kernels that take most of a step, and how long."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        run()
        torch.cuda.synchronize()
    spent = sorted(((event.self_device_time_total, event.key) for event in seen.key_averages()), reverse=True)
    for microseconds, name in spent[:15]:
        yield name[:90], microseconds / 1e3


def decoding(size: Size, device: torch.device, batches: tuple[int, ...], tokens: int) -> Iterator[tuple[str, float]]:
    """Tokens a second of greedy decoding: ours by either cache, Hugging Face's Kosmos-2 and Kosmos-2.5's decoder.

    The peers have random weights and the sizes of our decoder; Kosmos-2.5's decoder reads text alone.
    """
    ours = build(size, device).eval()
    second, third = _peers(ours.config.text_config, device, tiny=size is TINY)
    places = torch.arange(80) < 2 + second.config.latent_query_num
    side = second.config.vision_config.image_size
    for rows in batches:
        prompt = torch.randint(4, 200, (rows, 80), device=device)
        image = {
            "image_embeds_position_mask": (places & (torch.arange(80) >= 2)).long().repeat(rows, 1).to(device),
            "pixel_values": torch.zeros(rows, 3, side, side, device=device, dtype=torch.bfloat16),
        }
        runs = {
            "ours, dynamic cache": (ours, {}, "dynamic"),
            "ours, static cache": (ours, {}, "static"),
            "HF Kosmos-2": (second, image, None),
            "HF Kosmos-2.5, dynamic cache": (third, {}, "dynamic"),
            "HF Kosmos-2.5, static cache": (third, {}, "static"),
        }
        for name, (model, inputs, cache) in runs.items():
            options = {"max_new_tokens": tokens, "do_sample": False, "eos_token_id": None}
            options |= {} if cache is None else {"cache_implementation": cache}
            run = lambda: model.generate(input_ids=prompt, **inputs, **options)  # noqa: B023, E731
            yield f"{name}, batch {rows}: tokens/s", 1e3 * rows * tokens / milliseconds(run, device, 2, warm=1)


def _peers(text: Any, device: torch.device, tiny: bool) -> tuple[Any, Any]:
    """Hugging Face's Kosmos-2, whole, and the decoder of its Kosmos-2.5, as wide and deep as ours."""
    from transformers import Kosmos2_5Config, Kosmos2Config, Kosmos2ForConditionalGeneration
    from transformers.models.kosmos2_5.modeling_kosmos2_5 import Kosmos2_5TextForCausalLM

    fields = {"vocab_size": text.vocab_size, "embed_dim": text.hidden_size, "layers": text.num_hidden_layers}
    fields |= {"ffn_dim": text.intermediate_size, "attention_heads": text.num_attention_heads}
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {"vision_config": {**small, "image_size": 32, "patch_size": 16}, "latent_query_num": 4} if tiny else {}
    with torch.device(device):
        second = Kosmos2ForConditionalGeneration(Kosmos2Config(text_config=fields, **vision))
        third = Kosmos2_5TextForCausalLM(Kosmos2_5Config(text_config=fields).text_config)
    return second.to(torch.bfloat16).eval(), third.to(torch.bfloat16).eval()
