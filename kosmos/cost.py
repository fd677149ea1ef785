"""What a model costs: parameters, floating-point operations, memory.

``kosmos doctor``, ``--dry-run``, the log's MFU and the studies all ask here.

FLOPs are 2 for each multiply-add. The decoder's follow PaLM (appendix B): 6N a token for matrices that learn, 4N for
frozen ones, as the gradient of the connectors comes through them, and attention over the half of the square that a
causal mask leaves; recomputation is not counted. What an encoder and its connector compute, torch's own counter tells,
on the meta device: so any encoder costs what it does, also one of which only the last blocks learn.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .encoder_configs import QUERYING
from .loss import GPU_CHUNK
from .modalities import IMAGE, MODALITIES, Modality

BUCKET = 500_000_000  # parameters in a bucket of DeepSpeed

# Dense bf16 peaks in FLOP/s from the vendors' data sheets (not the doubled sparse figures).
# A name is looked up from the first to the last: what begins another one's name stands behind it.
PEAKS = {"H200": 989e12, "H100 NVL": 835e12, "H100 PCIe": 756e12, "H100": 989e12, "H20": 148e12, "B300": 2500e12,
         "B200": 2250e12, "A100": 312e12, "L40S": 362e12, "L40": 181e12, "L4": 121e12, "A10": 125e12,
         "RTX 4090": 165e12, "RTX 3090": 71e12}  # fmt: skip

# What embeddings and output matrices are called, in our decoder and in transformers'.
EMBEDDINGS = (
    "embed_tokens",
    "embed_in",
    "embed_positions",
    "word_embeddings",
    "lm_head",
    "positions",
    ".wte.",
    ".wpe.",
)


@dataclass(frozen=True)
class Cost:
    """Parameters by part, and the FLOPs of training."""

    parameters: dict[str, int]
    """Part → parameters: decoder, embeddings, vision, connector, spans, see :func:`part_of`."""
    frozen: dict[str, int]
    """Part → how many of them are frozen."""
    token_flops: float
    """FLOPs of one decoder token, forward and backward, causal attention and the output matrix included."""
    output_flops: float
    """How many of them are the output matrix's, which only tokens with a label meet."""
    attention_flops: float
    """How many of them are attention; over the full square it is so many more."""
    unit_flops: dict[str, float]
    """Modality → FLOPs of one image, or one token of a span, in encoder and connector; only what the model has."""

    @property
    def trainable(self) -> int:
        """Parameters that learn."""
        return sum(self.parameters.values()) - sum(self.frozen.values())

    def flops(self, tokens: float, units: Mapping[str, float], supervised: float | None = None) -> float:
        """Return the FLOPs of training on so many decoder tokens, and units of each modality.

        ``supervised``: how many of the tokens have a label and so meet the output matrix; by default all.
        """
        unread = 0.0 if supervised is None else tokens - supervised
        encoded = sum(units[name] * flops for name, flops in self.unit_flops.items())
        return tokens * self.token_flops - unread * self.output_flops + encoded


def model_cost(model: Any, row_tokens: int) -> Cost:
    """Count a ``KosmosForConditionalGeneration`` (on any device, meta too) that reads rows of ``row_tokens``."""
    parameters = dict.fromkeys(part_names(), 0)
    frozen = dict(parameters)
    matrices = 0.0  # weights that a token is multiplied with, each as often as it counts
    text = model.config.text_config
    for name, parameter in model.named_parameters():
        part, size = part_of(name), parameter.numel()
        parameters[part] += size
        frozen[part] += 0 if parameter.requires_grad else size
        if part in ("decoder", "cross_attention") and parameter.ndim > 1 and not _of_images(name):
            matrices += _times(parameter) * size * _share_used(name, text)
    output = model.get_output_embeddings().weight  # its lookup, if it is the embeddings too, is free
    # 6 passes over half of the square of scores, twice: queries by keys, weights by values
    attention = 12.0 * attention_width(text) * sum(_keys_seen(window, row_tokens) for window in windows(text))
    attention += 12.0 * _cross_keys(model)
    return Cost(
        parameters={part: count for part, count in parameters.items() if count},
        frozen={part: frozen[part] for part, count in parameters.items() if count},
        token_flops=float(matrices + _times(output) * output.numel()) + attention,
        output_flops=float(_times(output) * output.numel()),
        attention_flops=attention,
        unit_flops={
            modality.name: unit_flops(model.model, modality) + (_image_keys(model) if modality is IMAGE else 0.0)
            for modality in MODALITIES.values()
            if getattr(model.model, modality.connector, None) is not None
        },
    )


def _of_images(name: str) -> bool:
    """Whether a weight of the cross-attention is multiplied with features of images, not with tokens."""
    return name.endswith("kv_proj.weight") and part_of(name) == "cross_attention"


def _cross_keys(model: Any) -> float:
    """Return keys times width that a token's queries meet in cross-attention; each token is taken to see an image."""
    config = model.config
    layers = len(config.cross_layers())
    if not layers:
        return 0.0
    made = _image_features(model)
    return float(layers * config.cross_attention_heads * config.cross_attention_head_dim * made)


def _image_keys(model: Any) -> float:
    """Return the FLOPs of an image's keys and values in the layers of cross-attention."""
    config = model.config
    if not config.cross_layers():
        return 0.0
    made = _image_features(model)
    weights = [weight for name, weight in model.named_parameters() if _of_images(name)]
    return float(sum(_times(weight) * weight.numel() * made for weight in weights))


def _image_features(model: Any) -> int:
    connector = model.config.connector_config
    return connector.num_queries if connector.kind in QUERYING else model.model.vision_tower.count_tokens()


def attention_width(text: Any) -> int:
    """Return the width of all heads of a layer, which some language models have other than the hidden one."""
    heads: int = text.num_attention_heads
    return heads * (getattr(text, "head_dim", None) or text.hidden_size // heads)


def windows(text: Any) -> list[int | None]:
    """Return for each layer how many tokens back it sees; None: all."""
    window = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None)
    if kinds is None:  # such a model has a window everywhere or nowhere
        return [window if getattr(text, "use_sliding_window", True) else None] * text.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _keys_seen(window: int | None, length: int) -> float:
    """Return how many keys a query of a full row sees on average, the half of its own place left out."""
    reach = length if window is None else min(window, length)
    return reach - reach**2 / (2 * length)


def _share_used(name: str, text: Any) -> float:
    """Return which share of a weight a token meets: of a mixture's experts only those that it is sent to."""
    if "experts" not in name or "shared" in name:
        return 1.0
    counts = (getattr(text, key, None) for key in ("num_local_experts", "num_experts", "n_routed_experts"))
    total = next((count for count in counts if count), 0)
    return text.num_experts_per_tok / total if total else 1.0


def _times(weight: Tensor) -> int:
    """Return FLOPs a token and weight: forward 2, gradient of what came in 2, gradient of the weight 2 if it learns."""
    return 6 if weight.requires_grad else 4


def unit_flops(model: Any, modality: Modality) -> float:
    """Return the FLOPs of one unit, measured over a typical input of the modality."""
    inputs = (modality.typical or modality.smallest)(model.config, torch.device("meta"))
    return encode_flops(model, modality, inputs) / modality.units(inputs)


def encode_flops(model: Any, modality: Modality, inputs: Mapping[str, Any]) -> float:
    """Return the training FLOPs of encoder and connector over ``inputs`` as they are computed, padding included.

    Args:
        model: a ``KosmosModel``, on any device.
        inputs: holds the modality's inputs; only their shapes matter, and masks not at all.
    """
    given = {name: tensor for name, tensor in modality.given(inputs).items() if not name.endswith("_mask")}
    one = {name: torch.empty_like(tensor[:1], device="meta") for name, tensor in given.items()}
    return len(inputs[modality.inputs[0]]) * measure(model, lambda twin: modality.read(twin, **one))


def measure(model: nn.Module, run: Callable[[Any], Tensor]) -> float:
    """Return the FLOPs of ``run`` and its backward pass, given a copy of ``model`` on the meta device, in eval mode."""
    from torch.utils.flop_counter import FlopCounterMode

    # A copy without weights: deepcopy takes these in place of the model's own, so it takes no memory.
    memo: dict[int, Any] = {id(t): torch.empty_like(t, device="meta") for t in model.buffers()}
    for weight in model.parameters():
        memo[id(weight)] = nn.Parameter(torch.empty_like(weight, device="meta"), weight.requires_grad)
    twin = copy.deepcopy(model, memo).eval()  # checkpointing, which would compute twice, is off
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        made = run(twin)
        if made.requires_grad:
            made.sum().backward()
    return float(counter.get_total_flops())


def memory(
    cost: Cost,
    config: Any,
    rows: int,
    length: int,
    *,
    checkpointing: bool,
    zero_stage: int,
    gpus: int,
    precision: str = "bf16",
    offload: bool = False,
    one_moment: int = 0,
    encoded: float = 0.0,
) -> dict[str, float]:
    """Return the bytes that a GPU holds in training with Adam, by what they hold.

    In bf16 a parameter that learns takes 2 bytes of weight, 4 of gradient (accumulated in fp32) and 12 of optimiser
    (fp32 master weight, two moments), a frozen one 2. ZeRO stage 1 divides the optimiser by the number of GPUs, 2 the
    gradients too, 3 the weights too (arXiv 1910.02054, figure 1). What is named "about" is an estimate: the memory that
    fake tensors follow through a step of ``kosmos-1`` is within 15 % of it (tests/simulated/test_memory.py).

    Args:
        cost: of the model.
        config: the model's.
        rows, length: rows of a micro-batch, tokens of a row.
        checkpointing: activations are computed again in the backward pass.
        precision: ``bf16`` or ``fp32``.
        offload: the optimiser's state lies in the CPU's memory.
        one_moment: how many parameters have one moment instead of two, as Muon's matrices.
        encoded: bytes that encoders and connectors keep for the backward pass, see ``encoded_bytes``.

    Raises:
        ValueError: a stage other than 0 to 3, or no GPU.
    """
    if zero_stage not in (0, 1, 2, 3) or gpus < 1:
        raise ValueError(
            f"zero stage {zero_stage} with {gpus} GPUs: the stage is 0 to 3, and at least one GPU is needed"
        )
    each = 2 if precision == "bf16" else 4
    master = 12 if precision == "bf16" or zero_stage else 8  # plain fp32 needs no second copy of the weights
    sharing = {stage: gpus if zero_stage >= stage else 1 for stage in (1, 2, 3)}
    state = master * cost.trainable - 4 * one_moment
    kept = activation_bytes(config, rows, length, checkpointing) * each / 2 + encoded
    bucket = each * min(BUCKET, cost.trainable)
    # a reduction's bucket, at stage 2 one more to fill meanwhile, and that of the gathered weights
    buckets = {0: 0, 1: 2, 2: 3, 3: 3}[zero_stage] * bucket
    # From stage 2 on a gradient is in a bucket or gone; before, all of them are there at the end of the backward pass.
    gradients = each * cost.trainable if zero_stage < 2 else 0
    backward = gradients + encoded + block_bytes(config, rows, length) * each / 2
    return {
        f"weights, {precision}": each * sum(cost.parameters.values()) / sharing[3],
        "gradients, fp32": 4 * cost.trainable / sharing[2],
        "optimiser, fp32": 0.0 if offload else state / sharing[1],
        "activations, about": kept,
        "loss, or gradients on their way, about": max(loss_bytes(config, rows * length, each), backward - kept),
        "DeepSpeed's buckets, about": float(buckets),
    }


def activation_bytes(config: Any, rows: int, length: int, checkpointing: bool) -> float:
    """Estimate bytes of what the decoder's blocks keep for the backward pass in bf16: all, or their inputs only."""
    text = config.text_config
    layer = 2.0 * rows * length * text.hidden_size if checkpointing else block_bytes(config, rows, length)
    return text.num_hidden_layers * layer


def block_bytes(config: Any, rows: int, length: int) -> float:
    """Estimate bytes of what one block keeps for its backward pass in bf16.

    Our block keeps 10 d values a token and twice the width of the FFN, counted on fake tensors; others about 13 d.
    """
    text = config.text_config
    inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size  # GPT-2 leaves it out
    around = 10 if getattr(text, "model_type", None) == "kosmos_text" else 13
    return 2.0 * rows * length * (around * text.hidden_size + 2 * inner)


def loss_bytes(config: Any, tokens: int, each: int) -> float:
    """Return bytes of the loss: a chunk's logits in fp32, their gradients, the output matrix's fp32 gradient."""
    text = config.text_config
    return float(min(GPU_CHUNK, tokens) * text.vocab_size * (4 + each) + 4 * text.vocab_size * text.hidden_size)


def encoded_bytes(model: Any, units: Mapping[str, float]) -> float:
    """Return the bytes that encoders and connectors keep for the backward pass over so many units of each modality.

    Counted on the meta device over a typical input, with the attention of a GPU, which keeps no scores.
    """
    total = 0.0
    for modality in MODALITIES.values():
        if getattr(model, modality.connector, None) is None or not units.get(modality.name):
            continue
        inputs = (modality.typical or modality.smallest)(model.config, torch.device("meta"))
        seen: dict[int, Tensor] = {}

        def keep(tensor: Tensor, seen: dict[int, Tensor] = seen) -> Tensor:
            if not isinstance(tensor, nn.Parameter) and not isinstance(tensor._base, nn.Parameter):
                seen[tensor.untyped_storage()._cdata] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), _without_scores():
            measure(model, functools.partial(_read, kind=modality, given=inputs))
        kept = sum(tensor.untyped_storage().nbytes() for tensor in seen.values())
        total += kept * units[modality.name] / modality.units(inputs)
    return total


def _read(twin: Any, kind: Modality, given: Mapping[str, Any]) -> Any:
    return kind.read(twin, **given)


class _Attention(torch.autograd.Function):
    """What a fused attention kernel keeps and returns, without its numbers."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(…, T, K) in and out."""
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Gradients of the right shapes."""
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


@contextlib.contextmanager
def _without_scores() -> Iterator[None]:
    """Let sdpa be ``_Attention``: on the meta device it would compute the scores and keep them."""
    original = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda query, key, value, *_, **__: _Attention.apply(query, key, value)
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


def device_peak() -> float | None:
    """Return the dense bf16 FLOP/s of this GPU, by its name; None where it is not known."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for key, peak in PEAKS.items() if key in name), None)


def part_names() -> list[str]:
    """Return the names of all parts that a model may have."""
    encoded = [part for modality in MODALITIES.values() for part in modality.parts]
    return list(dict.fromkeys(["decoder", "embeddings", *encoded, "cross_attention"]))


def part_of(name: str) -> str:
    """Return the part of the model that a parameter belongs to, by its name: a modality's, embeddings or decoder."""
    parts = {
        attribute: part
        for modality in MODALITIES.values()
        for attribute, part in zip((modality.encoder, modality.connector), modality.parts, strict=True)
    }
    # the outermost name decides: an encoder may have parts of its own with such names
    for component in name.split("."):
        if component in parts:
            return parts[component]
        if component == "cross_attention":
            return component
    if any(word in name for word in EMBEDDINGS):
        return "embeddings"
    return "decoder"
