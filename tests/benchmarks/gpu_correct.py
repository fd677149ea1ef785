"""Is a GPU right? Every way of attending, position type, precision, compiled or not, recomputed or not, against a CPU.

The reference is the same model in fp32 on the CPU: a loss and the whole gradient of packed rows with pictures. The
tolerances are stated with each comparison; fp32 is compared without TF32. ``pytest -m gpu`` runs what is here as tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kosmos import KosmosConfig, KosmosForConditionalGeneration

ROWS = 2
# the norm of the difference over the norm: of the gradient and, smaller, of loss and logits
GRADIENT = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
VALUE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
# way of attending → position type that it needs, documents in a row, blocks that see both ways
WAYS = {
    "causal": ("xpos", 1, False),
    "lengths": ("xpos", 5, False),
    "flex": ("rope", 5, True),
    "eager": ("rope", 5, True),
}
POSITIONS = ("xpos", "rope", "sinusoidal", "learned_2d")


@dataclass(frozen=True)
class Check:
    """One comparison."""

    name: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether it is within its tolerance (NaN is not)."""
        return self.error <= self.tolerance


@contextmanager
def exact_products() -> Iterator[None]:
    """Multiply fp32 in fp32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def config_of(position: str) -> KosmosConfig:
    """The tiny preset, heads of 32 as kernels like them, no dropout."""
    config = KosmosConfig.preset("tiny")
    config.text_config.position_type, config.text_config.dropout = position, 0.0
    return config


def length_on(device: torch.device) -> int:
    """Tokens of a row: more than one tile of a GPU's kernels, and few on a CPU."""
    return 384 if device.type == "cuda" else 96


def batch_of(config: KosmosConfig, length: int, documents: int, blocks: bool) -> dict[str, Tensor]:
    """Packed rows with a picture each; the last 16th of a row is padding, unless it is one document."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 200, (ROWS, length), generator=draw)
    slots, size = config.num_image_tokens, config.vision_config.image_size
    ids[:, 2 : 2 + slots] = config.image_token_id
    place = torch.arange(length).repeat(ROWS, 1)
    owner = place * documents // length
    if documents > 1:
        owner[:, -length // 16 :] = -1
    labels = ids.roll(-1, 1)
    labels = labels.masked_fill((owner < 0) | (labels == config.image_token_id), -100)
    batch = {"input_ids": ids, "shift_labels": labels, "document_ids": owner, "position_ids": place}
    batch["pixel_values"] = torch.randn(ROWS, 3, size, size, generator=draw)
    if blocks:
        batch["block_ids"] = torch.where((place % 64 < 16) & (owner >= 0), place // 64, -1)
    return batch


def on(device: torch.device, dtype: torch.dtype, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch on the device, pixels in the precision of the model."""
    moved = {name: value.to(device) for name, value in batch.items()}
    return moved | {"pixel_values": moved["pixel_values"].to(dtype)}


def relative(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖."""
    expected = expected.detach().double().cpu()
    return ((found.detach().double().cpu() - expected).norm() / expected.norm()).item()


def gradient(model: Any) -> Tensor:
    """All gradients end to end."""
    return torch.cat([value.grad.flatten().float().cpu() for value in model.parameters() if value.requires_grad])


def built(config: KosmosConfig, reference: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A model with the weights of the reference."""
    model = KosmosForConditionalGeneration(config)
    model.load_state_dict(reference.state_dict())
    return model.to(device, dtype).train()


def training(device: torch.device, compiled: bool = True, ways: tuple[str, ...] = tuple(WAYS)) -> Iterator[Check]:
    """Loss and gradient of a training step; ``compiled`` False leaves compiled blocks out."""
    for way in ways:
        position, documents, blocks = WAYS[way]
        yield from _step(device, way, position, documents, blocks, compiled)
    for position in POSITIONS:
        blocks = position in ("rope", "learned_2d")
        yield from _step(device, f"{position}, plain", position, 5, blocks, compiled=False)


def _step(
    device: torch.device, name: str, position: str, documents: int, blocks: bool, compiled: bool
) -> Iterator[Check]:
    config = config_of(position)
    torch.manual_seed(0)
    reference = KosmosForConditionalGeneration(config).train()
    batch = batch_of(config, length_on(device), documents, blocks)
    expected = reference(**batch)
    expected.loss.backward()
    wanted = gradient(reference)
    for dtype in (torch.float32, torch.bfloat16):
        for extra in ("", "recomputed", "compiled", "compiled, recomputed"):
            if ("compiled" in extra and not compiled) or (extra and "plain" in name):
                continue
            model = built(config, reference, device, dtype)
            if name == "eager":
                model.set_attn_implementation("eager")
            if "recomputed" in extra:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            if "compiled" in extra:
                for layer in model.model.decoder.layers:
                    layer.compile()
            output = model(**on(device, dtype, batch))
            output.loss.backward()
            words = ", ".join(word for word in (name, str(dtype).removeprefix("torch."), extra) if word)
            yield Check(f"loss: {words}", relative(output.loss, expected.loss), VALUE[dtype])
            yield Check(f"gradient: {words}", relative(gradient(model), wanted), GRADIENT[dtype])
    torch.compiler.reset()


@torch.no_grad()
def packed_is_alone(device: torch.device) -> Iterator[Check]:
    """Documents of one row have the logits that they have alone."""
    config = config_of("rope")
    torch.manual_seed(0)
    reference = KosmosForConditionalGeneration(config)
    for dtype in (torch.float32, torch.bfloat16):
        model = built(config, reference, device, dtype).eval()
        ids = torch.randint(4, 200, (1, 96), generator=torch.Generator().manual_seed(1)).to(device)
        first, second = ids[:, :40], ids[:, 40:]
        place = torch.cat([torch.arange(40), torch.arange(56)])[None].to(device)
        owner = (torch.arange(96)[None] >= 40).long().to(device)
        together = model(input_ids=ids, document_ids=owner, position_ids=place).logits
        alone = torch.cat([model(input_ids=part).logits for part in (first, second)], dim=1)
        yield Check(f"packed = alone: {str(dtype).removeprefix('torch.')}", relative(together, alone), VALUE[dtype])


@torch.no_grad()
def decoding_is_forward(device: torch.device) -> Iterator[Check]:
    """The logits of greedy decoding, by either cache, are those of one forward pass over what was written."""
    config = config_of("xpos")
    torch.manual_seed(0)
    reference = KosmosForConditionalGeneration(config)
    for dtype in (torch.float32, torch.bfloat16):
        model = built(config, reference, device, dtype).eval()
        prompt = torch.randint(4, 200, (2, 20), generator=torch.Generator().manual_seed(2)).to(device)
        for cache in ("dynamic", "static"):
            made: Any = model.generate(
                input_ids=prompt,
                max_new_tokens=12,
                min_new_tokens=12,
                do_sample=False,
                cache_implementation=cache,
                return_dict_in_generate=True,
                output_logits=True,
            )
            whole = model(input_ids=made.sequences).logits[:, 19:-1]
            words = f"{cache} cache, {str(dtype).removeprefix('torch.')}"
            yield Check(f"decoding = forward: {words}", relative(torch.stack(made.logits, 1), whole), VALUE[dtype])


@torch.no_grad()
def outside_training(device: torch.device) -> Iterator[Check]:
    """Prompts with blocks that see both ways: the logits of the CPU."""
    config = config_of("rope")
    torch.manual_seed(0)
    reference = KosmosForConditionalGeneration(config).eval()
    batch = batch_of(config, length_on(device), 5, blocks=True)
    del batch["shift_labels"]
    read = batch["document_ids"] >= 0
    expected = reference(**batch).logits[read]
    for dtype in (torch.float32, torch.bfloat16):
        model = built(config, reference, device, dtype).eval()
        found = model(**on(device, dtype, batch)).logits.cpu()[read]
        yield Check(
            f"prompts with blocks: {str(dtype).removeprefix('torch.')}", relative(found, expected), VALUE[dtype]
        )


def everything(device: torch.device, compiled: bool = True) -> Iterator[Check]:
    """All comparisons, the quick ones first."""
    with exact_products():
        yield from packed_is_alone(device)
        yield from outside_training(device)
        yield from decoding_is_forward(device)
        yield from training(device, compiled)
