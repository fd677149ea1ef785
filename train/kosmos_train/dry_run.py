"""``kosmos train CONFIG --dry-run``: everything that can be known before a GPU is paid for.

Settings are checked, corpora opened and a few batches read, weights and sample pictures looked for, the model is built
on the meta device (no memory) and asked what of the batches it would refuse, and a table says how large it is, what a
GPU must hold, and how long the run takes at an assumed utilisation. What is not there yet is listed with the command
that makes it; the size is told all the same.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import Any

import torch

from kosmos.cost import encoded_bytes, model_cost
from kosmos.loading import encoder_folder
from kosmos.modalities import MODALITIES
from kosmos.tuning import attach
from kosmos_data import DataConfig

from .build import build_config, build_processor
from .config import TrainConfig
from .corpora import describe
from .engine import dtype_of
from .inputs import check_inputs, missing_inputs, unfit_inputs
from .optim import freeze, parameter_groups
from .plan_table import Plan, show
from .samples import encode_prompts
from .simulate import IMAGES, memory_of, outline
from .trackers import require

PROBE_BATCHES = 2


def plan(config: TrainConfig, gpus: int) -> Plan:
    """Check a run on ``gpus`` processes and work out what it costs.

    Raises:
        ValueError, OSError: what would stop the run, with the reason.
    """
    config.check(gpus)
    check_inputs(config)
    processor = build_processor(config)
    batches = _probe(config.data, processor)
    held_out = _probe(config.eval.data, processor) if config.eval.every and config.eval.data else []
    with torch.device("meta"):
        from kosmos import KosmosForConditionalGeneration

        model: Any = KosmosForConditionalGeneration(build_config(config.model, processor))
    for micro in (micro for batch in batches + held_out for micro in batch.micro_batches):
        try:
            model.model.check(**micro)
        except ValueError as error:
            raise ValueError(f"{_blocked(config, micro)}{error}") from error
    _look_ahead(config, processor)
    if config.tuning is not None:
        with torch.device("meta"):
            attach(model, config.tuning)
    freeze(model.to(dtype_of(config.engine)), config.model.freeze)
    parameter_groups(model, config.optim)
    cost = model_cost(model, config.data.row_tokens)
    tokens = sum(batch.stats["tokens"] for batch in batches) / len(batches)
    images = sum(batch.stats["images"] for batch in batches) / len(batches)
    micro_batches = [micro for batch in batches for micro in batch.micro_batches]
    units = {name: sum(map(kind.count, micro_batches)) / len(batches) for name, kind in MODALITIES.items()}
    each = {name: count / len(micro_batches) * len(batches) for name, count in units.items()}
    supervised = sum(batch.stats["supervised"] for batch in batches) / len(batches)
    return Plan(
        cost=cost,
        tokens_per_step=tokens,
        images_per_step=images,
        packed=tokens / (config.data.rows_per_step * config.data.row_tokens),
        micro_batches=config.micro_batches(gpus),
        memory=memory_of(config, model, cost, gpus, encoded_bytes(model.model, each)),
        flops_per_step=cost.flops(tokens, units, supervised),
        passes=_passes(config, batches),
        crowded=_crowded(config.data, batches),
    )


def outlined(config: TrainConfig, gpus: int) -> Plan:
    """The same from the settings alone: rows are taken to be full, with :data:`IMAGES` pictures each.

    Raises:
        ValueError, OSError: the settings alone do not say what the model is like.
    """
    run, data = outline(config), config.data
    rows, images = data.rows_per_step, IMAGES if "image" in run.cost.unit_flops else 0
    tokens = float(rows * data.row_tokens)
    units = dict.fromkeys(run.cost.unit_flops, 0.0) | ({"image": float(rows * images)} if images else {})
    return Plan(
        cost=run.cost,
        tokens_per_step=tokens,
        images_per_step=rows * images,
        packed=1.0,
        micro_batches=config.micro_batches(gpus),
        memory=memory_of(config, run.model, run.cost, gpus, run.image_bytes * images * data.rows_per_micro_batch),
        flops_per_step=run.cost.flops(tokens, units),
        assumed="full rows" + (f" with {images} pictures each" if images else "") + ", the preset's vocabulary",
    )


def _passes(config: TrainConfig, batches: list[Any]) -> dict[str, float]:
    """How often the run reads each document, from the documents that begin in the batches read."""
    begun: Counter[int] = Counter()
    for micro in (micro for batch in batches for micro in batch.micro_batches):
        for documents, sources in zip(micro["document_ids"].tolist(), micro["source_ids"].tolist(), strict=True):
            begun.update(source for document, source in set(zip(documents, sources, strict=True)) if document >= 0)
    held = [found["documents"] for found in describe(config.data).values()]
    names = [source.name for source in config.data.sources]
    return {name: config.steps * begun[number] / len(batches) / held[number] for number, name in enumerate(names)}


def _crowded(data: DataConfig, batches: list[Any]) -> float:
    rows = [inputs.get("image", 0) for batch in batches for inputs in batch.inputs]
    return sum(count >= data.max_images_per_row for count in rows) / len(rows)


def _blocked(config: TrainConfig, micro: dict[str, Any]) -> str:
    """The sources whose tokens see to the right, the beginning of a message about them."""
    if "block_ids" not in micro:
        return ""
    names = [source.name for source in config.data.sources]
    found = sorted(set(micro["source_ids"][micro["block_ids"] >= 0].tolist()) - {-1})
    return f"data.sources {', '.join(names[number] for number in found)}: " if found else ""


def _look_ahead(config: TrainConfig, processor: Any) -> None:
    """What the run would only miss after its start: weights, tasks, sample pictures, trackers' packages."""
    from kosmos.encoder_weights import find_weights

    for weights in config.model.named_weights.values():
        find_weights(encoder_folder(weights))
    if config.eval.tasks_every:
        from .evaluation import check_tasks

        check_tasks(config.eval)
    encode_prompts(config.samples, processor)
    for name in config.log.tracking:
        require(name)


def dry_run(config: TrainConfig, gpus: int | None, done: int = 0, utilisation: float = 0.4) -> None:
    """Print the plan of a run of which so many steps are ``done``.

    Args:
        gpus: processes that share it; None: one, on the CPU of this machine.

    Raises:
        FileNotFoundError: inputs are missing or unfit; what can be said without them is printed before.
    """
    processes = 1 if gpus is None else gpus
    unfit = unfit_inputs(config)
    if not missing_inputs(config) and not unfit:
        show(config, plan(config, processes), gpus, done, utilisation)
        return
    config.check(processes)
    with suppress(ValueError, OSError):  # the checkpoint may be what is missing
        show(config, outlined(config, processes), gpus, done, utilisation)
    check_inputs(config, unfit=unfit)


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
