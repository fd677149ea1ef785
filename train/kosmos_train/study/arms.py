"""Pretraining runs of a study: one objective each, on the same text, with the same budget of FLOPs.

FLOPs are counted as they are computed (:mod:`kosmos.cost`), padding included. The output matrix is multiplied only
where there is loss, so an objective with little of it makes more steps. A text encoder counts with what it reads, and
so does its own pretraining: a semi-causal run makes that many fewer steps.
"""

from __future__ import annotations

import copy
import itertools
import json
import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kosmos import settings
from kosmos.cost import encode_flops, measure, model_cost
from kosmos.loading import load
from kosmos.modalities import MODALITIES
from kosmos_data import build_loader

from ..build import build_config
from ..config import TrainConfig
from ..parts import encoder as encoders
from .blanks import fill_blanks
from .jobs import Figures, Job, train_to_the_end

PROBE_STEPS = 4
ENCODER = "encoder"


def step_flops(config: TrainConfig, processor: Any) -> float:
    """FLOPs of one step, on average over the stages of a schedule, measured on the first batches of each."""
    source = config.data.sources[0]
    stages = objective_with_steps(source.objective, config.steps).get("stages")
    if stages is None:
        return _step_flops(config, processor)
    total, begin = 0.0, 0
    for stage in stages:
        end = stage.pop("until", config.steps)
        data = replace(config.data, sources=[replace(source, objective=stage), *config.data.sources[1:]])
        total += (end - begin) / config.steps * _step_flops(replace(config, data=data), processor)
        begin = end
    return total


def _step_flops(config: TrainConfig, processor: Any) -> float:
    from kosmos import KosmosForConditionalGeneration

    with torch.device("meta"):
        model = KosmosForConditionalGeneration(build_config(config.model, processor))
    data, text = config.data, model.config.get_text_config()
    output = 6 * text.vocab_size * text.hidden_size
    total = data.rows_per_step * data.row_tokens * (model_cost(model, data.row_tokens).token_flops - output)
    loader = build_loader(data, processor)
    batches = [micro for batch in itertools.islice(loader, PROBE_STEPS) for micro in batch.micro_batches]
    loader.close()
    for micro in batches:
        total += int((micro["loss_weight"] > 0).sum()) * output / PROBE_STEPS
        for modality in MODALITIES.values():
            if modality.given(micro):
                total += encode_flops(model.model, modality, micro) / PROBE_STEPS
    return total


def encoder_flops(config: encoders.EncoderConfig, processor: Any) -> float:
    """FLOPs of pretraining the text encoder, as if every window were full."""
    with torch.device("meta"):
        model = encoders.build(config, processor)
    window = torch.zeros(1, config.window, dtype=torch.long, device="meta")
    return config.steps * config.batch_size * measure(model, lambda twin: twin(input_ids=window).logits)


def objective_with_steps(objective: dict[str, Any], steps: int) -> dict[str, Any]:
    """The same objective; the stages of a schedule may end at a share of the run (``until: 0.9``)."""
    changed = copy.deepcopy(objective)
    for stage in changed.get("stages", []):
        if isinstance(stage.get("until"), float) and stage["until"] < 1:
            stage["until"] = max(1, round(stage["until"] * steps))
    return changed


def encoder_job(config: encoders.EncoderConfig, processor: Any, folder: Path) -> Job:
    """Pretraining of the text encoder that the semi-causal runs share."""
    flops = encoder_flops(config, processor)
    return Job(ENCODER, partial(_encoder, config, flops), folder, settings.to_dict(config), config.steps, flops)


def _encoder(config: encoders.EncoderConfig, flops: float, folder: Path) -> Figures:
    losses = encoders.train_encoder(config, folder)
    return {"flops": flops, "first_loss": losses[0], "last_loss": statistics.fmean(losses[-20:]), "steps": len(losses)}


def arm_job(name: str, config: TrainConfig, flops: float, before: float, blanks: dict[str, str], folder: Path) -> Job:
    """One objective: pretraining, then its blanks.

    Args:
        flops: of one step.
        before: FLOPs spent before the first step (an encoder's pretraining).
        blanks: path of each set of blanks → objective in whose form it is asked.
    """
    identity = {**settings.to_dict(config), "blanks": blanks}
    needs = (ENCODER,) if before else ()
    work = partial(_arm, config, flops, before, blanks)
    return Job(name, work, folder, identity, config.steps, config.steps * flops, needs)


def _arm(config: TrainConfig, flops: float, before: float, blanks: dict[str, str], folder: Path) -> Figures:
    train_to_the_end(config, folder)
    model, processor = load(folder, "cpu")
    model.eval()
    objective = config.data.sources[0].objective
    both_ways = objective.get("stages", [objective])[-1].get("bidirectional", True)
    cloze = {
        Path(path).stem: fill_blanks(model, processor, Path(path), form, both_ways) for path, form in blanks.items()
    }
    return {**summary(folder, flops, before), "cloze": cloze}


def summary(folder: Path, flops: float, before: float = 0.0) -> Figures:
    """The figures of a finished run, from its ``metrics.jsonl``."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    curve = [[before + row["step"] * flops, row["eval_loss"]["loss"]] for row in rows if "eval_loss" in row]
    return {
        "held_out_loss": curve[-1][1],
        "curve": curve,
        "steps": rows[-1]["step"],
        "flops": before + rows[-1]["step"] * flops,
        "flops_before": before,
        "tokens": rows[-1]["tokens"],
        "loss_exposure": sum(row["supervised"] for row in rows) / rows[-1]["tokens"],
        "tokens_per_second": statistics.median(row["tokens_per_second"] for row in rows),
        "fallbacks": sum(row.get("fallbacks", 0) for row in rows),
    }
