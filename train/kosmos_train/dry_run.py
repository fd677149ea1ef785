"""``kosmos train CONFIG --dry-run``: everything that can be known before a GPU is paid for.

Settings are checked, corpora opened and a few batches read, weights and sample pictures looked for, the model is built
on the meta device (no memory), and a table says how large it is, what a GPU must hold, and how long the run takes at an
assumed utilisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from kosmos.loading import encoder_folder
from kosmos.modalities import SPAN
from kosmos_data import DataConfig

from .build import build_config, build_processor
from .config import TrainConfig
from .flops import PEAKS, ModelCost, device_peak, model_cost
from .loading import describe
from .optim import freeze
from .samples import encode_prompts
from .trackers import require

PROBE_BATCHES = 2


@dataclass(frozen=True)
class Plan:
    """What a run will be."""

    cost: ModelCost
    tokens_per_step: float
    """Mean over the batches read, without padding."""
    images_per_step: float
    packed: float
    """Share of the positions that are no padding."""
    micro_batches: int
    memory: dict[str, float]
    """Bytes on a GPU by what they hold."""
    flops_per_step: float


def plan(config: TrainConfig, gpus: int) -> Plan:
    """Check a run on ``gpus`` processes and work out what it costs.

    Raises:
        ValueError, OSError: what would stop the run, with the reason.
    """
    config.check(gpus)
    processor = build_processor(config)
    batches = _probe(config.data, processor)
    held_out = _probe(config.eval.data, processor) if config.eval.every and config.eval.data else []
    with torch.device("meta"):
        from kosmos import KosmosForConditionalGeneration

        model = KosmosForConditionalGeneration(build_config(config.model, processor))
    refuse_misfits(model.config, batches + held_out)
    _look_ahead(config, processor)
    freeze(model, config.model.freeze)
    cost = model_cost(model, config.data.row_tokens)
    tokens = sum(batch.stats["tokens"] for batch in batches) / len(batches)
    images = sum(batch.stats["images"] for batch in batches) / len(batches)
    micro_batches = [micro for batch in batches for micro in batch.micro_batches]
    spans = sum(SPAN.count(micro) for micro in micro_batches)
    return Plan(
        cost=cost,
        tokens_per_step=tokens,
        images_per_step=images,
        packed=tokens / (config.data.rows_per_step * config.data.row_tokens),
        micro_batches=config.micro_batches(gpus),
        memory=memory(config, cost, model.config, gpus),
        flops_per_step=cost.flops(tokens, images, spans / len(batches)),
    )


def _look_ahead(config: TrainConfig, processor: Any) -> None:
    """What the run would only miss after its start: weights, tasks, sample pictures, trackers' packages."""
    from kosmos.encoder_weights import find_weights

    for weights in (config.model.vision_weights, config.model.span_weights):
        if weights is not None:
            find_weights(encoder_folder(weights))
    if config.eval.tasks_every:
        from .evaluation import check_tasks

        check_tasks(config.eval)
    encode_prompts(config.samples, processor)
    for name in config.log.tracking:
        require(name)


def refuse_misfits(config: Any, batches: list[Any]) -> None:
    """Batches that ask for what the model cannot do: it would refuse them itself, but only at the first step.

    Raises:
        ValueError: bidirectional blocks with xPos, GLM's second position without its table, spans without an encoder.
    """
    asked = {name for batch in batches for micro in batch.micro_batches for name in micro}
    position = config.text_config.position_type
    if "block_ids" in asked and position == "xpos":
        raise ValueError(
            "the objective makes bidirectional blocks, but text_config.position_type is 'xpos', which amplifies keys "
            "to the right of the query; set model.overrides.text_config.position_type to 'rope' or 'learned_2d', or "
            "the objective's bidirectional to false"
        )
    if "position_in_span" in asked and position != "learned_2d":
        raise ValueError(
            f"the objective has two positions a token (glm), but text_config.position_type is {position!r}; set it to "
            "'learned_2d', or the objective's two_positions to false"
        )
    if SPAN.inputs[0] in asked and config.span_encoder_config is None:
        raise ValueError("the data holds text spans, but the model has no span_encoder_config to read them with")


def memory(config: TrainConfig, cost: ModelCost, model_config: Any, gpus: int) -> dict[str, float]:
    """Bytes a GPU holds, about: ZeRO shares state by stage (arXiv 1910.02054, figure 1); activations are estimated."""
    from kosmos.doctor import activation_bytes

    stage, total, trainable = config.engine.zero_stage, sum(cost.parameters.values()), cost.trainable
    each = 2 if config.engine.precision == "bf16" else 4
    master = 12 if config.engine.precision == "bf16" or stage else 8  # plain fp32 needs no second copy of the weights
    state = 0.0 if config.engine.offload_optimizer else master * trainable / (gpus if stage >= 1 else 1)
    data = config.data
    activations = activation_bytes(
        model_config, data.rows_per_micro_batch, data.row_tokens, config.model.activation_checkpointing
    )
    return {
        f"weights, {config.engine.precision}": each * total / (gpus if stage >= 3 else 1),
        "gradients, fp32": 4 * trainable / (gpus if stage >= 2 else 1),
        "optimiser, fp32": state,
        "activations, about": activations * each / 2,
    }


def dry_run(config: TrainConfig, gpus: int, done: int = 0, utilisation: float = 0.4) -> None:
    """Print the plan of a run of which so many steps are ``done``."""
    from rich.console import Console
    from rich.table import Table

    found = plan(config, gpus)
    table = Table(
        "", "", show_header=False, title=f"GPUs: {gpus}, ZeRO {config.engine.zero_stage}, {config.engine.precision}"
    )
    for part, count in found.cost.parameters.items():
        frozen = found.cost.frozen[part]
        note = "" if not frozen else ", frozen" if frozen == count else f", {frozen:,} of them frozen"
        table.add_row(part, f"{count:,} parameters{note}")
    table.add_row("total", f"{sum(found.cost.parameters.values()):,}, {found.cost.trainable:,} trainable")
    table.add_section()
    for name, size in found.memory.items():
        table.add_row(name, f"{size / 2**30:.2f} GiB a GPU")
    table.add_row("memory", f"{sum(found.memory.values()) / 2**30:.2f} GiB a GPU")
    table.add_section()
    for name, value in _schedule(config, found, gpus, done, utilisation).items():
        table.add_row(name, value)
    Console().print(table)


def _schedule(config: TrainConfig, found: Plan, gpus: int, done: int, utilisation: float) -> dict[str, str]:
    data, own_peak = config.data, device_peak()
    peak, whose = (PEAKS["H100"], "an H100's") if own_peak is None else (own_peak, "this GPU's")
    seconds, left = found.flops_per_step / (gpus * peak * utilisation), max(0, config.steps - done)
    return {
        "a step": f"{data.rows_per_step} rows of {data.row_tokens} = {found.tokens_per_step:,.0f} tokens, "
        f"{found.images_per_step:,.0f} images; {found.micro_batches} micro-batches of {data.rows_per_micro_batch} rows",
        "packing": f"{100 * found.packed:.1f} % of the positions are tokens",
        "FLOPs": f"{found.cost.token_flops:.3g} a token, {found.cost.image_flops:.3g} an image, "
        f"{found.flops_per_step:.3g} a step",
        "the run": f"{config.steps:,} steps, {config.steps * found.tokens_per_step / 1e9:.3g} B tokens",
        "to go": f"{left:,} steps, {left * found.tokens_per_step / 1e9:.3g} B tokens, "
        f"{seconds * left / 86400:.3g} days",
        "at": f"{seconds:.3g} s a step, {100 * utilisation:.0f} % of {whose} {peak / 1e12:.0f} TFLOP/s",
    }


def _probe(config: DataConfig, processor: Any) -> list[Any]:
    """The first batches, read by one process: proof that shards, objective and tokenizer fit.

    Raises:
        ValueError: more lanes than documents.
    """
    from kosmos_data import build_loader

    lanes = config.lane_count
    counts = {name: found["documents"] for name, found in describe(config).items()}
    too_few = {name: count for name, count in counts.items() if count < lanes}
    if too_few:
        raise ValueError(
            f"data.lanes={lanes} streams cannot share {too_few} documents: lower data.lanes or bring more documents"
        )
    loader = build_loader(config, processor)
    batches = [next(loader) for _ in range(PROBE_BATCHES)]
    loader.close()
    return batches
