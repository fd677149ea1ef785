"""``kosmos doctor``: what is installed here, and what a preset costs before anything is started.

Parameters are counted on the meta device. Training memory follows bf16 with Adam: a trainable parameter takes 2 bytes
of weight, 4 of gradient (accumulated in fp32), 12 of optimiser (fp32 master weight, two moments), a frozen one 2; ZeRO
stage 1 divides the optimiser by the number of GPUs, 2 the gradients too, 3 the weights too (arXiv 1910.02054,
figure 1). FLOPs a token are 6 · (decoder layers and output matrix) + 12 · L · d · T for attention over the full square,
the convention of PaLM and nanoGPT; the causal half is 6 · L · d · T less.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
from dataclasses import dataclass
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from rich.console import Console
from rich.table import Table

from .configuration_kosmos import KosmosConfig

PACKAGES = (
    "kosmos-metalm",
    "torch",
    "torchvision",
    "transformers",
    "open_clip_torch",
    "timm",
    "deepspeed",
    "webdataset",
    "peft",
)


@dataclass(frozen=True)
class Part:
    """One part of a model: its parameters, how many of them train, and how many are only looked up."""

    name: str
    parameters: int
    trainable: int
    lookup: int


def count_parts(config: KosmosConfig) -> list[Part]:
    """Count the parameters of a model by part without allocating them."""
    import torch

    from .modeling_kosmos import KosmosForConditionalGeneration

    with torch.device("meta"):
        model = KosmosForConditionalGeneration(config)
    inner = model.model
    modules = {
        "embeddings": [inner.decoder.embed_tokens, inner.decoder.positions],
        "decoder layers": [inner.decoder.layers, inner.decoder.layer_norm],
        "output matrix": [] if config.tie_word_embeddings else [model.lm_head],
        "vision tower": [inner.vision_tower],
        "connector": [inner.connector],
        "span encoder": [inner.span_encoder],
        "span connector": [inner.span_connector],
    }
    parts = []
    for name, group in modules.items():
        parameters = [parameter for module in group if module is not None for parameter in module.parameters()]
        if parameters:
            trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
            inside = [child for module in group for child in module.modules()]
            lookup = sum(child.weight.numel() for child in inside if isinstance(child, torch.nn.Embedding))
            parts.append(Part(name, sum(parameter.numel() for parameter in parameters), trainable, lookup))
    return parts


def training_memory(parts: list[Part], zero_stage: int, gpus: int) -> dict[str, float]:
    """Return bytes a GPU of weights, gradients and optimiser state at a ZeRO stage.

    Raises:
        ValueError: a stage other than 0 to 3, or no GPU.
    """
    if zero_stage not in (0, 1, 2, 3) or gpus < 1:
        raise ValueError(
            f"zero stage {zero_stage} with {gpus} GPUs: the stage is 0 to 3, and at least one GPU is needed"
        )
    total, trainable = sum(part.parameters for part in parts), sum(part.trainable for part in parts)
    return {
        "weights, bf16": 2 * total / (gpus if zero_stage >= 3 else 1),
        "gradients, fp32": 4 * trainable / (gpus if zero_stage >= 2 else 1),
        "optimiser, fp32": 12 * trainable / (gpus if zero_stage >= 1 else 1),
    }


def activation_bytes(config: KosmosConfig, rows: int, length: int, checkpointing: bool) -> float:
    """Estimate bytes of the decoder's activations: about 21 · d values a token and layer, or the layer inputs only."""
    text = config.text_config
    values = 21 + 2 * text.intermediate_size / text.hidden_size - 8  # the 21 hold an FFN of 4 d
    each = 2.0 if checkpointing else 2.0 * values
    return rows * length * text.hidden_size * (text.num_hidden_layers * each + (2 * values if checkpointing else 0))


def training_flops(config: KosmosConfig, length: int) -> tuple[float, float]:
    """Return FLOPs a token, forward and backward, with attention counted (over the full square, causally)."""
    text = config.text_config
    width, layers = text.hidden_size, text.num_hidden_layers
    matrices = layers * (4 * width * width + 2 * width * text.intermediate_size) + text.vocab_size * width
    return 6.0 * matrices + 12.0 * layers * width * length, 6.0 * matrices + 6.0 * layers * width * length


def image_flops(config: KosmosConfig, parts: list[Part]) -> float:
    """Return FLOPs an image of the vision tower: forward 2N a patch token, backward 4N for what trains."""
    if config.vision_config is None:
        return 0.0
    import torch

    from .encoders import build_vision_tower

    with torch.device("meta"):
        tokens = build_vision_tower(config.vision_config).count_tokens()
    tower = next(part for part in parts if part.name == "vision tower")
    return tokens * (2.0 * tower.parameters + 4.0 * tower.trainable)


def span_flops(parts: list[Part]) -> float:
    """Return FLOPs a token of a text span: forward 2N in encoder and connector, backward 4N for what trains.

    A connector with queries costs less where a span has more than twice as many tokens as queries.
    """
    read = [part for part in parts if part.name.startswith("span ")]
    return sum(2.0 * (part.parameters - part.lookup) + 4.0 * part.trainable for part in read)


def describe_preset(config: KosmosConfig, arguments: argparse.Namespace, console: Console) -> None:
    """Print parameters by part, memory and FLOPs."""
    parts = count_parts(config)
    table = Table("part", "parameters", "trainable", title=f"preset {arguments.preset}")
    for part in parts:
        table.add_row(part.name, f"{part.parameters:,}", f"{part.trainable:,}")
    table.add_section()
    table.add_row("total", f"{sum(p.parameters for p in parts):,}", f"{sum(p.trainable for p in parts):,}")
    _right(table)
    console.print(table)

    length = arguments.length or config.text_config.max_position_embeddings
    title = f"training memory a GPU, ZeRO {arguments.zero_stage}, {arguments.gpus} GPU(s), {arguments.rows} × {length}"
    table = Table("what", "GB", title=title)
    memory = training_memory(parts, arguments.zero_stage, arguments.gpus)
    memory["activations, about"] = activation_bytes(config, arguments.rows, length, arguments.checkpointing)
    for name, size in memory.items():
        table.add_row(name, f"{size / 1e9:.2f}")
    table.add_section()
    table.add_row("total", f"{sum(memory.values()) / 1e9:.2f}")
    _right(table)
    console.print(table)

    full, causal = training_flops(config, length)
    console.print(f"FLOPs/token, forward and backward at length {length}: {full:.4g} (causal attention: {causal:.4g})")
    if config.vision_config is not None:
        console.print(f"FLOPs/image of the vision tower: {image_flops(config, parts):.4g}")
    if config.span_encoder_config is not None:
        console.print(f"FLOPs/token of a text span, before the decoder: {span_flops(parts):.4g}")


def tested_versions() -> dict[str, SpecifierSet]:
    """Return by package the versions that the tests passed with: what our own metadata asks for, any extra included."""
    tested: dict[str, SpecifierSet] = {}
    for requirement in map(Requirement, importlib.metadata.requires("kosmos-metalm") or []):
        name = canonicalize_name(requirement.name)
        tested[name] = tested.get(name, SpecifierSet()) & requirement.specifier
    return tested


def describe_version(package: str, tested: dict[str, SpecifierSet]) -> str:
    """Say which version is installed, and whether the tests have seen it."""
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    expected = tested.get(canonicalize_name(package), SpecifierSet())
    if expected.contains(version, prereleases=True):
        return version
    return f"{version}, not tested with this version of Kosmos: it asks for {expected}"


def describe_machine(console: Console) -> None:
    """Print versions, which of them are outside of the tested range, and devices."""
    table = Table("what", "version", title="this machine")
    table.add_row("python", platform.python_version())
    tested = tested_versions()
    for package in PACKAGES:
        table.add_row(package, describe_version(package, tested))
    import torch

    table.add_row("CPU threads", str(torch.get_num_threads()))
    for index in range(torch.cuda.device_count()):
        properties: Any = torch.cuda.get_device_properties(index)
        table.add_row(f"GPU {index}", f"{properties.name}, {properties.total_memory / 1e9:.0f} GB")
    if not torch.cuda.is_available():
        table.add_row("GPU", "none found: training and generation run on the CPU")
    console.print(table)


def _right(table: Table) -> None:
    for column in table.columns[1:]:
        column.justify = "right"


def main(argv: list[str]) -> int:
    """``kosmos doctor``."""
    parser = argparse.ArgumentParser(prog="kosmos doctor", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--preset", help="count this preset (tiny, small, kosmos-1, kosmos-2, metalm)")
    parser.add_argument("--zero-stage", type=int, default=2, choices=(0, 1, 2, 3), help="ZeRO stage (default 2)")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs that share the state (default 1)")
    parser.add_argument("--rows", type=int, default=1, help="rows a GPU and micro-batch (default 1)")
    parser.add_argument("--length", type=int, help="tokens a row (default: the preset's training length)")
    parser.add_argument("--checkpointing", action="store_true", help="count activations with gradient checkpointing")
    arguments = parser.parse_args(argv)
    console = Console()
    if arguments.preset is None:
        describe_machine(console)
    else:
        describe_preset(KosmosConfig.preset(arguments.preset), arguments, console)
    return 0
