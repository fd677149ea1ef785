"""``kosmos doctor``: what is installed here, and what a preset costs (kosmos/cost.py) before anything is started."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from rich.console import Console
from rich.table import Table

from .plain import escape

if TYPE_CHECKING:
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


def counted_config(arguments: argparse.Namespace) -> KosmosConfig:
    """Return the preset's config, with a language model in the place of its decoder where one is named.

    Raises:
        ValueError, OSError: an unknown preset, or no such language model.
    """
    from .configuration_kosmos import KosmosConfig
    from .docking import find_language_model, read_config

    config = KosmosConfig() if arguments.preset is None else KosmosConfig.preset(arguments.preset)
    if arguments.decoder is None:
        return config
    fields = config.to_dict() | {"text_config": read_config(find_language_model(arguments.decoder)).to_dict()}
    return KosmosConfig.from_dict(fields)


def describe_preset(config: KosmosConfig, arguments: argparse.Namespace, console: Console) -> None:
    """Print parameters by part, memory and FLOPs."""
    import torch

    from .cost import memory, model_cost
    from .modalities import MODALITIES
    from .modeling_kosmos import KosmosForConditionalGeneration

    length = arguments.length or config.text_config.max_position_embeddings
    with torch.device("meta"):
        cost = model_cost(KosmosForConditionalGeneration(config), length)
    table = Table("part", "parameters", "trainable", title=_title(arguments))
    for part, count in cost.parameters.items():
        table.add_row(part, f"{count:,}", f"{count - cost.frozen[part]:,}")
    table.add_section()
    table.add_row("total", f"{sum(cost.parameters.values()):,}", f"{cost.trainable:,}")
    _right(table)
    console.print(table)

    title = f"training memory a GPU, ZeRO {arguments.zero_stage}, {arguments.gpus} GPU(s), {arguments.rows} × {length}"
    table = Table("what", "GB", title=title)
    how = {"checkpointing": arguments.checkpointing, "zero_stage": arguments.zero_stage, "gpus": arguments.gpus}
    sizes = memory(cost, config, arguments.rows, length, **how)
    for name, size in sizes.items():
        table.add_row(name, f"{size / 1e9:.2f}")
    table.add_section()
    table.add_row("total", f"{sum(sizes.values()) / 1e9:.2f}")
    _right(table)
    console.print(table)

    full, causal = cost.token_flops + cost.attention_flops, cost.token_flops
    console.print(f"FLOPs/token, forward and backward at length {length}: {full:.4g} (causal attention: {causal:.4g})")
    for name, flops in cost.unit_flops.items():
        console.print(f"FLOPs/{MODALITIES[name].unit or name}, encoder and connector: {flops:.4g}")


def _title(arguments: argparse.Namespace) -> str:
    named = {"preset": arguments.preset, "decoder": arguments.decoder}
    return ", ".join(f"{what} {name}" for what, name in named.items() if name is not None)


def installed(package: str) -> str | None:
    """Return the version of a package; None: it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def commit() -> str | None:
    """Return the commit of the source tree that runs, with ``+changes`` if it differs; None for an installed wheel."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        found, changed = (
            subprocess.run([*git, *words], capture_output=True, text=True, check=False, timeout=10)
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    head = found.stdout.strip()
    return head + ("+changes" if changed.stdout.strip() else "") if head else None


def tested_versions() -> dict[str, SpecifierSet]:
    """Return by package the versions that the tests passed with: what our own metadata asks for, any extra included."""
    try:
        asked = importlib.metadata.requires("kosmos-metalm") or []
    except importlib.metadata.PackageNotFoundError:  # a source tree that is not installed
        asked = []
    tested: dict[str, SpecifierSet] = {}
    for requirement in map(Requirement, asked):
        name = canonicalize_name(requirement.name)
        tested[name] = tested.get(name, SpecifierSet()) & requirement.specifier
    return tested


def describe_version(package: str, tested: dict[str, SpecifierSet]) -> str:
    """Say which version is installed, and whether the tests have seen it."""
    version = installed(package)
    if version is None:
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

    from .gpu import lacking, versions

    table.add_row("CPU threads", str(torch.get_num_threads()))
    for index in range(torch.cuda.device_count()):
        properties: Any = torch.cuda.get_device_properties(index)
        table.add_row(f"GPU {index}", f"{properties.name}, {properties.total_memory / 1e9:.0f} GB")
        for fault in lacking(torch.device("cuda", index), "bf16"):
            table.add_row("", fault)
    if torch.cuda.is_available():
        table.add_row("NCCL", versions(torch.device("cuda"))["NCCL"])
        set_here = {name: value for name, value in os.environ.items() if name.startswith(("NCCL_", "TORCH_NCCL_"))}
        shown = ", ".join(f"{name}={escape(value)}" for name, value in set_here.items())
        table.add_row("NCCL's variables", shown or "none")
    else:
        table.add_row("GPU", "none found: training and generation run on the CPU")
    console.print(table)


def _right(table: Table) -> None:
    for column in table.columns[1:]:
        column.justify = "right"


def main(argv: list[str]) -> int:
    """``kosmos doctor``."""
    parser = argparse.ArgumentParser(prog="kosmos doctor", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--preset", help="count this preset (tiny, small, kosmos-1, kosmos-2, metalm)")
    parser.add_argument("--decoder", help="count this language model (folder, GGUF file, hub name) as its decoder")
    parser.add_argument("--zero-stage", type=int, default=2, choices=(0, 1, 2, 3), help="ZeRO stage (default 2)")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs that share the state (default 1)")
    parser.add_argument("--rows", type=int, default=1, help="rows a GPU and micro-batch (default 1)")
    parser.add_argument("--length", type=int, help="tokens a row (default: the preset's training length)")
    parser.add_argument("--checkpointing", action="store_true", help="count activations with gradient checkpointing")
    arguments = parser.parse_args(argv)
    for option in ("gpus", "rows", "length"):
        if (given := getattr(arguments, option)) is not None and given < 1:
            raise ValueError(f"--{option} {given}: at least 1 is needed")
    console = Console(emoji=False)
    if arguments.preset is None and arguments.decoder is None:
        describe_machine(console)
    else:
        describe_preset(counted_config(arguments), arguments, console)
    return 0
