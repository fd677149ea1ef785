"""What a model costs: parameters, floating-point operations, memory; and the utilisation that a speed amounts to.

FLOPs follow the usual convention (PaLM, appendix B): 2 for each multiply-add, 6N per token for parts that are trained
(forward and twice backward), attention added, recomputation not counted. A *frozen* encoder costs 2N: it has no
backward pass; frozen weights of the decoder cost 4N, as the gradient of the connectors comes through them. A vision
tower is paid per patch, the connector per query, the decoder per token, the text encoder per token of the spans that it
reads. A span connector with queries is counted per token too: it costs less where a span has more than twice as many
tokens as there are queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from kosmos.modalities import MODALITIES

# Dense bf16 peaks in FLOP/s from the vendors' data sheets (not the doubled sparse figures).
PEAKS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12,
         "L40": 181e12, "L4": 121e12, "A10": 125e12, "RTX 4090": 165e12, "RTX 3090": 71e12}  # fmt: skip


@dataclass(frozen=True)
class ModelCost:
    """Parameters by part, and FLOPs of training on one token and one image."""

    parameters: dict[str, int]
    """Part → parameters: decoder, embeddings, vision, connector, spans, see :func:`part_of`."""
    frozen: dict[str, int]
    """Part → how many of them are frozen."""
    token_flops: float
    """Training FLOPs of one decoder token, its share of attention included."""
    image_flops: float
    """Training FLOPs of one image before the decoder."""
    span_flops: float = 0.0
    """Training FLOPs of one token in the bidirectional encoder of text spans and its connector."""

    @property
    def trainable(self) -> int:
        """Parameters that learn."""
        return sum(self.parameters.values()) - sum(self.frozen.values())

    def flops(self, tokens: float, images: float, span_tokens: float) -> float:
        """Training FLOPs of so many tokens, images, and tokens of text spans."""
        return tokens * self.token_flops + images * self.image_flops + span_tokens * self.span_flops

    def utilisation(self, flops: float, seconds: float, processes: int) -> float | None:
        """Model FLOPs utilisation over all processes, 0–1; None on a device whose peak is not known."""
        peak = device_peak()
        return None if peak is None else flops / (seconds * processes * peak)


def device_peak() -> float | None:
    """Dense bf16 FLOP/s of this GPU, by its name."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for key, peak in PEAKS.items() if key in name), None)


def model_cost(model: Any, row_tokens: int) -> ModelCost:
    """Count a model (on any device, meta too) that reads rows of ``row_tokens``."""
    parts = dict.fromkeys(part_names(), 0)
    frozen = dict.fromkeys(parts, 0)
    for name, parameter in model.named_parameters():
        part = part_of(name)
        parts[part] += parameter.numel()
        frozen[part] += 0 if parameter.requires_grad else parameter.numel()
    text, output = model.config.text_config, model.get_output_embeddings().weight
    matrices = parts["decoder"] + output.numel()  # the output matrix is used, the lookup is free
    trained = parts["decoder"] - frozen["decoder"] + (output.numel() if output.requires_grad else 0)
    attention = 2 * text.num_hidden_layers * text.hidden_size * row_tokens  # QK and AV forward, half of it masked
    return ModelCost(
        parameters={part: count for part, count in parts.items() if count},
        frozen={part: frozen[part] for part, count in parts.items() if count},
        token_flops=float(4 * matrices + 2 * trained + 3 * attention),
        image_flops=_image_flops(model, parts, frozen),
        span_flops=_span_flops(model),
    )


def _image_flops(model: Any, parts: dict[str, int], frozen: dict[str, int]) -> float:
    if not parts["vision"]:
        return 0.0
    patches = model.model.vision_tower.count_tokens()
    trained = parts["vision"] - frozen["vision"]
    tower = (2 * frozen["vision"] + 6 * trained) * patches
    queries = int(model.config.num_image_tokens)
    return float(tower + 6 * parts["connector"] * (patches + queries) / 2)


def _span_flops(model: Any) -> float:
    """Spans are short, so their attention is left out; the lookup is free."""
    used = [p for name, p in model.named_parameters() if part_of(name) == "spans" and ".embeddings." not in name]
    return float(sum((6 if parameter.requires_grad else 2) * parameter.numel() for parameter in used))


def part_names() -> list[str]:
    """The names of all parts that a model may have."""
    encoded = [part for modality in MODALITIES.values() for part in modality.parts]
    return list(dict.fromkeys(["decoder", "embeddings", *encoded]))


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to, by its name: of a modality, embeddings or decoder."""
    parts = {
        attribute: part
        for modality in MODALITIES.values()
        for attribute, part in zip((modality.encoder, modality.connector), modality.parts, strict=True)
    }
    # the outermost name decides: an encoder may have parts of its own with such names
    for component in name.split("."):
        if component in parts:
            return parts[component]
    if "embed_tokens" in name or "lm_head" in name or "positions" in name:
        return "embeddings"
    return "decoder"
