"""Attach a method to a model: everything is frozen, and what the method adds learns.

PEFT's layers are injected in place (``inject_adapter_in_model``), so that the model stays a Kosmos model for trainer,
evaluator and chat; prompts.py and bottleneck.py hook in what needs other mechanics.
"""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ..encoders import Encoder
from .bottleneck import add_adapter, add_fusion
from .prompts import Prompts, prompts_of
from .settings import PEFT_METHODS, PROMPT_METHODS, Tuning

IA3_TARGETS = ("k_proj", "v_proj", "fc2", "down_proj")
IA3_INPUTS = ("fc2", "down_proj")  # whose input is scaled, as the paper scales the FFN's inner state


@dataclass
class Attached:
    """One tuning of a model."""

    tuning: Tuning
    config: Any
    """PEFT's configuration; of our own methods None."""
    base: str
    """Path of the model that was tuned."""
    also: dict[str, Tensor] = field(default_factory=dict)
    """Values of the model's own parameters under this tuning; of what is being trained they are in the model."""
    rules: Any = None
    """The generation config that came with it."""
    turn_end: str | None = None
    """How answers end in its processor; None: it came without one."""
    fused: list[Tuning] = field(default_factory=list)
    """Settings of the adapters of a fusion."""


def attachments(model: Any) -> dict[str, Attached]:
    """Name → tuning of a model, in the order in which they were attached."""
    if not hasattr(model, "attached"):
        model.attached = {}
        model.own_values = {}  # of the parameters that some tuning replaces
    return model.attached


def attach(
    model: Any,
    tuning: Tuning,
    base: str | Path = "",
    name: str = "default",
    config: Any = None,
    fused: Sequence[Tuning] = (),
) -> Attached:
    """Freeze the model and add what ``tuning`` asks for, to be trained; it is active at once.

    Args:
        model: a ``KosmosForConditionalGeneration``, on any device, meta too.
        tuning: what to do.
        base: where the model comes from, for the record.
        name: what the tuning is called in this model.
        config: PEFT's configuration of a saved tuning; None: it follows from ``tuning``.
        fused: settings of the adapters of a saved fusion; of a new one they are read from ``tuning.adapters``.

    Raises:
        ValueError: what does not fit the model, naming what there is.
    """
    tuning.check()
    if name in attachments(model):
        raise ValueError(f"the model has an adapter {name!r} already; there are: {', '.join(attachments(model))}")
    model.requires_grad_(False)
    record = Attached(tuning, config, str(base), fused=list(fused))
    add = _inject if tuning.method in PEFT_METHODS else _prompt if tuning.method in PROMPT_METHODS else _hook
    add(model, record, name)
    named = dict(model.named_parameters())
    for pattern in tuning.also:
        matched = [key for key in fnmatch.filter(named, pattern) if not is_added(key)]
        if not matched:
            raise ValueError(f"tuning.also: {pattern!r} matches no parameter; names look like {next(iter(named))!r}")
        for key in matched:
            named[key].requires_grad_(True)
            record.also[plain_name(key)] = named[key]
    for encoder in model.modules():
        if isinstance(encoder, Encoder):  # with nothing to learn in it, it records no gradients
            encoder.learns = any(parameter.requires_grad for parameter in encoder.parameters())
    model.attached[name] = record
    return record


def is_added(name: str) -> bool:
    """Whether a parameter was added by a tuning, by its name."""
    parts = name.split(".")
    return any(part.startswith(("lora_", "ia3_")) or part in ("prompts", "adapter_places") for part in parts)


def plain_name(name: str) -> str:
    """The name that a parameter of the model has without PEFT's layers around its module."""
    return name.replace(".base_layer.", ".")


def linear_layers(model: Any) -> dict[str, nn.Linear]:
    """Layers that can be targets, by name.

    Of the output matrix, and in PyTorch's own attention, only the weight is read: a layer around it would not be seen.
    """
    found: dict[str, nn.Linear] = {}
    for name, module in model.named_modules():
        called = isinstance(module, nn.Linear) and type(module) is not NonDynamicallyQuantizableLinear
        if called and name != "lm_head" and not is_added(name):
            found[name.replace(".base_layer", "")] = module
    return found


def resolve_targets(model: Any, tuning: Tuning) -> list[str]:
    """Names of the linear layers that ``tuning.targets`` means.

    Raises:
        ValueError: a target that matches nothing.
    """
    layers = linear_layers(model)
    blocks = [name for name in layers if ".decoder.layers." in name]
    if not tuning.targets:
        kept = IA3_TARGETS if tuning.method == "ia3" else tuple({name.rpartition(".")[2] for name in blocks})
        return [name for name in blocks if name.endswith(tuple("." + end for end in kept))]
    found: dict[str, None] = {}
    for target in tuning.targets:
        matched = [name for name in blocks if name.endswith("." + target)] or [
            name for name in layers if name == target or name.endswith("." + target) or fnmatch.fnmatch(name, target)
        ]
        if not matched:
            ends = sorted({name.rpartition(".")[2] for name in layers if not name.rpartition(".")[2].isdecimal()})
            raise ValueError(f"tuning.targets: {target!r} matches no linear layer; there are {', '.join(ends)}")
        found.update(dict.fromkeys(matched))
    return list(found)


def _inject(model: Any, record: Attached, name: str) -> None:
    """LoRA and IA³: PEFT's layers around the targets."""
    from peft import inject_adapter_in_model

    tuning = record.tuning
    others = {other.tuning.method for other in model.attached.values()} & set(PEFT_METHODS) - {tuning.method}
    if others:
        raise ValueError(
            f"{tuning.method} beside {others.pop()} in one model: load them one at a time, or merge the first"
        )
    if record.config is None:
        record.config = peft_config(model, tuning)
    with warnings.catch_warnings():  # that there are several adapters is meant
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        inject_adapter_in_model(record.config, model, adapter_name=name)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(is_added(key) and name in key.split("."))


def peft_config(model: Any, tuning: Tuning) -> Any:
    """PEFT's configuration of a LoRA or IA³.

    Raises:
        ValueError: a target that matches nothing, or a rank above a target's.
    """
    from peft import IA3Config, LoraConfig

    targets = resolve_targets(model, tuning)
    if tuning.method == "lora":
        layers = linear_layers(model)
        for target in targets:
            if (limit := min(layers[target].in_features, layers[target].out_features)) < tuning.rank:
                raise ValueError(f"tuning.rank={tuning.rank} is larger than {target}, whose rank is at most {limit}")
        scale: Any = float(tuning.rank) if tuning.alpha is None else tuning.alpha
        return LoraConfig(
            r=tuning.rank, lora_alpha=scale, lora_dropout=tuning.dropout, use_dora=tuning.dora,
            use_rslora=tuning.rslora, target_modules=targets,
        )  # fmt: skip
    inputs = [target for target in targets if target.rpartition(".")[2] in IA3_INPUTS]
    return IA3Config(target_modules=targets, feedforward_modules=inputs)


def _prompt(model: Any, record: Attached, name: str) -> None:
    """Prefix, prompt and P-tuning: PEFT's encoder in front of our own slots."""
    decoder, tuning = model.model.decoder, record.tuning
    text = model.config.get_text_config()
    if tuning.method == "prefix" and not any(
        hasattr(block.self_attn, "num_key_value_groups") for block in _blocks(model)
    ):
        raise ValueError(
            "tuning.method=prefix needs the decoder's own attention; use lora or adapter with this decoder"
        )
    record.config = record.config or prompt_config(tuning, text)
    encoder = prompt_encoder(record.config, tuning, decoder.embed_tokens)
    prompts_of(decoder).add(name, encoder, tuning.tokens, tuning.method == "prefix")


def prompt_config(tuning: Tuning, text: Any) -> Any:
    """PEFT's configuration of a prompt method."""
    from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, TaskType

    shape: dict[str, Any] = {
        "task_type": TaskType.CAUSAL_LM, "num_virtual_tokens": tuning.tokens, "token_dim": text.hidden_size,
        "num_transformer_submodules": 1, "num_attention_heads": text.num_attention_heads,
        "num_layers": text.num_hidden_layers,
    }  # fmt: skip
    size = tuning.encoder_size or text.hidden_size
    if tuning.method == "prefix":
        return PrefixTuningConfig(**shape, prefix_projection=tuning.projection, encoder_hidden_size=size)
    if tuning.method == "p_tuning":
        return PromptEncoderConfig(**shape, encoder_reparameterization_type=tuning.encoder, encoder_hidden_size=size)
    return PromptTuningConfig(**shape, prompt_tuning_init="SAMPLE_VOCAB")


def prompt_encoder(config: Any, tuning: Tuning, embedding: nn.Embedding) -> nn.Module:
    """PEFT's module that makes the virtual tokens; of a saved tuning only its output is left."""
    from peft import PrefixEncoder, PromptEmbedding, PromptEncoder

    if config.inference_mode:
        layers = 2 * config.num_layers if tuning.method == "prefix" else 1
        return nn.Embedding(tuning.tokens, layers * config.token_dim).requires_grad_(False)
    if tuning.method == "prefix":
        return PrefixEncoder(config)
    return PromptEncoder(config) if tuning.method == "p_tuning" else PromptEmbedding(config, embedding)


def _hook(model: Any, record: Attached, name: str) -> None:
    """Adapter and fusion: small modules behind parts of each block."""
    from .storage import read_adapter

    tuning, width = record.tuning, model.config.get_text_config().hidden_size
    if tuning.method == "adapter":
        add_adapter(_blocks(model), name, tuning.placement, width, tuning.reduction, tuning.activation)
    else:
        sources = [] if record.fused else [read_adapter(where) for where in tuning.adapters]
        for saved in sources:
            saved.check(model, "adapter")
        record.fused = record.fused or [saved.tuning for saved in sources]
        placements = {asked.placement for asked in record.fused}
        if len(placements) > 1:
            raise ValueError(
                f"tuning.adapters: a fusion needs adapters of one placement, these have {sorted(placements)}"
            )
        names = [f"{name}_{index}" for index in range(len(record.fused))]
        for own, asked in zip(names, record.fused, strict=True):
            for module in add_adapter(_blocks(model), own, asked.placement, width, asked.reduction, asked.activation):
                module.requires_grad_(False)
        for own, saved in zip(names, sources, strict=False):
            saved.fill(model, own)
        add_fusion(_blocks(model), name, placements.pop(), width, names)
    activate_places(model, name)


def activate_places(model: Any, name: str | None) -> None:
    """Make an adapter or fusion active at every place that has it, and nothing elsewhere."""
    for block in _blocks(model):
        for place in getattr(block, "adapter_places", {}).values():
            place.active = name if name in place.adapters or name in place.fusions else None


def _blocks(model: Any) -> Any:
    return model.model.decoder.layers


def prompts_if_any(model: Any) -> Prompts | None:
    """The virtual tokens of a model, if it has some."""
    return getattr(model.model.decoder, "prompts", None)


def trained(model: Any) -> dict[str, torch.nn.Parameter]:
    """The parameters that learn."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
