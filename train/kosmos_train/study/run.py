"""A study of objectives on real text: ``python -m kosmos_train.study CONFIG run=DIR``.

Every objective trains the same decoder on the same corpus for the same FLOPs, in an ordinary run (``DIR/NAME-SEED``).
Then all are measured alike: loss of plain causal modelling on held-out text, blanks in held-out sentences, share of the
tokens that carried loss, speed; and some are fine-tuned on labels, with several seeds. What is missing is made first:
the corpus by its recipe, the vocabulary, the text encoder of the semi-causal runs.

    DIR/study.md  study.json  study-loss.png  study-tuning.png

Finished runs are not repeated: after a kill, the same command goes on.
"""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from kosmos import settings
from kosmos.loading import encoder_folder
from kosmos.modalities import MODALITIES

from ..build import build_config, build_processor
from ..config import TrainConfig
from ..named_configs import find_config
from ..parts.encoder import EncoderConfig
from ..parts.tokenizer import take_encoder_tokenizer
from . import arms, blanks, tuning, write_up
from .blanks import BlankSet
from .inputs import make_corpus, make_vocabulary
from .jobs import Job, do_all
from .tuning import TuningConfig


@dataclass
class StudyConfig:
    """What is compared."""

    base: str = ""
    """The run's YAML that all share; its first source gets the objectives, its steps are the budget."""
    steps: int | None = None
    """Replaces the base's."""
    objectives: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name of a run → objective with its options; ``until`` of a schedule may be a share of the run."""
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name of a run → changes to the model's config that it alone needs."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Each objective is trained once with each; the first one's runs are fine-tuned."""
    points: int = 6
    """How often held-out loss is measured in a run."""
    recipe: str | None = None
    """Recipe of the corpus, made where the base's sources lie if they are missing."""
    corpus: str = ""
    """Folder that the recipe fills."""
    tokenizer: str | None = None
    """YAML of the processor, made where the base expects it if it is missing."""
    encoder: str | None = None
    """YAML of a text encoder for runs whose ``models`` have one: pretrained first, FLOPs counted."""
    pretrained: dict[str, str] = field(default_factory=dict)
    """Name of a run → folder of a public text encoder instead of one's own, or ``package:NAME/FOLDER`` of an installed
    package; its own pretraining is not counted."""
    forms: dict[str, str] = field(default_factory=dict)
    """Name of a run → objective in whose form its blanks are asked; default its own."""
    blanks: dict[str, BlankSet] = field(default_factory=dict)
    """Sets of blanks in the first held-out corpus."""
    tuning: TuningConfig = field(default_factory=TuningConfig)
    """Fine-tuning; no sets: none."""
    jobs: int = 2
    """Runs at a time; the cores are divided among them."""


def load_base(study: StudyConfig) -> TrainConfig:
    """The run that all share.

    Raises:
        ValueError: nothing to compare, a model, an encoder or a form for no objective, or a base without held-out text.
    """
    if not study.objectives:
        raise ValueError("study: objectives is empty: name at least one")
    for section in ("models", "pretrained", "forms"):
        if unknown := sorted(getattr(study, section).keys() - study.objectives.keys()):
            known = ", ".join(study.objectives)
            raise ValueError(f"study: {section}.{unknown[0]} belongs to no objective; there are {known}")
    config = settings.load(TrainConfig, find_config(study.base))
    if config.eval.data is None:
        raise ValueError(f"{study.base}: eval.data is not set: the study compares held-out loss")
    return replace(config, steps=study.steps or config.steps)


def prepare(study: StudyConfig, base: TrainConfig, folder: Path, console: Console) -> None:
    """Make corpus, processor, blanks and labelled shards, as far as they are missing."""
    with Progress(console=console, transient=True) as progress:
        assert base.eval.data is not None, "load_base() has refused this"
        shards = [source.shards for data in (base.data, base.eval.data) for source in data.sources]
        make_corpus(study.recipe, study.corpus, shards, study.base, progress)
        make_vocabulary(study.tokenizer, base.processor, progress)
        for name in study.objectives:
            make_processor_of(study, name, base, folder)
        blanks.write_blanks(study.blanks, base.eval.data.sources[0].shards, folder / "blanks")
        for name, wanted in progress.track(study.tuning.sets.items(), description="labelled texts"):
            forms = {arm.get("input", "") for arm in study.tuning.arms.values()} & tuning.FORMATS.keys()
            tuning.prepare(name, wanted, folder / "tuning" / name, sorted(forms))


def make_processor_of(study: StudyConfig, name: str, base: TrainConfig, folder: Path) -> None:
    """Write an objective's processor, where it needs its own: another tokenizer, or a fixed number of places a span."""
    weights, sizes = study.pretrained.get(name), places_of(study, name)
    if weights is None and not sizes:
        return
    processor = build_processor(base)
    if weights is not None:
        take_encoder_tokenizer(processor, str(public_encoder(weights)))
    for size, places in sizes.items():
        setattr(processor, size, places)
    processor.save_pretrained(folder / f"processor-{name}")


def places_of(study: StudyConfig, name: str) -> dict[str, int]:
    """How many places an input takes, by the processor's field, where a connector of an objective's model says so."""
    model = study.models.get(name, {})
    connectors = {kind.size: model.get(kind.connector_config) or {} for kind in MODALITIES.values() if kind.size}
    return {size: connector["num_queries"] for size, connector in connectors.items() if "num_queries" in connector}


def configs(study: StudyConfig, base: TrainConfig, folder: Path) -> dict[str, TrainConfig]:
    """The pretraining runs by name, before the steps of each are worked out from its FLOPs."""
    encoder = settings.load(EncoderConfig, find_config(study.encoder)) if study.encoder else None
    runs = {}
    for name, objective in study.objectives.items():
        model = replace(base.model, overrides={**base.model.overrides, **study.models.get(name, {})})
        own = name in study.pretrained or bool(places_of(study, name))
        processor = str(folder / f"processor-{name}") if own else base.processor
        if name in study.pretrained:
            public = public_encoder(study.pretrained[name])
            fields = json.loads((public / "config.json").read_text(encoding="utf-8"))
            model.read_text(public, fields)
        elif encoder is not None and model.has_text_encoder:
            model.read_text(folder / arms.ENCODER, dict(encoder.model))
        source = replace(base.data.sources[0], objective=objective)
        for seed in study.seeds:
            data = replace(base.data, sources=[source, *base.data.sources[1:]], seed=seed)
            runs[f"{name}-{seed}"] = replace(base, model=model, processor=processor, data=data, seed=seed)
    return runs


def public_encoder(weights: str) -> Path:
    """Return the folder of a public text encoder, see :func:`kosmos.loading.encoder_folder`.

    Raises:
        ValueError: there is none.
    """
    try:
        path = encoder_folder(weights)
    except ValueError as error:
        raise ValueError(f"pretrained: {error}, or leave it out") from error
    if not (path / "config.json").is_file():
        raise ValueError(f"pretrained: {path} holds no text encoder (config.json)")
    return path


def with_steps(config: TrainConfig, steps: int, points: int) -> TrainConfig:
    """The same run with another number of steps, measured ``points`` times, kept at its end."""
    first, *rest = config.data.sources
    source = replace(first, objective=arms.objective_with_steps(first.objective, steps))
    return replace(
        config,
        steps=steps,
        data=replace(config.data, sources=[source, *rest]),
        optim=replace(config.optim, warmup=min(config.optim.warmup, steps)),
        eval=replace(config.eval, every=-(-steps // points)),
        checkpoint=replace(config.checkpoint, every=steps, keep=1),
    )


def plan(study: StudyConfig, base: TrainConfig, folder: Path) -> tuple[list[Job], float]:
    """All jobs in order, and the budget: the FLOPs of the base run.

    Raises:
        ValueError: a budget that the encoder's pretraining uses up, or settings that cannot work.
    """
    processor = build_processor(base)
    budget = base.steps * arms.step_flops(base, processor)
    runs = configs(study, base, folder)
    jobs: list[Job] = []
    own = folder / arms.ENCODER
    if study.encoder and any(str(own) in config.model.named_weights.values() for config in runs.values()):
        jobs.append(arms.encoder_job(settings.load(EncoderConfig, find_config(study.encoder)), processor, own))
    starts: dict[str, tuple[str, float]] = {}
    for name, config in runs.items():
        objective = name.rpartition("-")[0]
        before = jobs[0].cost if str(own) in config.model.named_weights.values() else 0.0
        flops = arms.step_flops(config, build_processor(config))
        if (steps := int((budget - before) / flops)) < 1:
            raise ValueError(f"{study.encoder}: pretraining takes the whole budget of {budget:.3g} FLOPs; lower steps")
        form = study.forms.get(objective, study.objectives[objective]["name"])
        asked = {str(folder / "blanks" / f"{blank}.json"): form for blank in study.blanks}
        config = with_steps(config, steps, study.points)
        config.check()
        jobs.append(arms.arm_job(name, config, flops, before, asked, folder / name))
        starts.setdefault(objective, (name, flops))
    return jobs + tuning.tuning_jobs(study.tuning, base, folder, starts), budget


def run(study: StudyConfig, folder: Path, command: str = "", console: Console | None = None) -> dict[str, Any]:
    """Do what is not done, write the report, and return what it is made of."""
    console = console or Console(emoji=False)
    base = load_base(study)
    folder.mkdir(parents=True, exist_ok=True)
    prepare(study, base, folder, console)
    jobs, budget = plan(study, base, folder)
    began = time.strftime("%Y-%m-%d")
    figures = do_all(jobs, study.jobs, console)
    compared = {name: figures[name] for name in configs(study, base, folder)}
    found = {
        "conditions": conditions(study, base, command, began),
        "budget": budget,
        "encoder": figures.get(arms.ENCODER),
        "blanks": {name: blanks.guesses(folder / "blanks" / f"{name}.json") for name in study.blanks},
        "arms": {name.rpartition("-")[0] if len(study.seeds) == 1 else name: arm for name, arm in compared.items()},
        "tuning": {name: tuning.results(study.tuning, name, figures, folder) for name in study.tuning.sets},
        "minutes": round(sum(one["seconds"] for one in figures.values()) / 60 / study.jobs, 1),
    }
    write_up.write(found, folder)
    return found


def conditions(study: StudyConfig, base: TrainConfig, command: str, date: str) -> dict[str, Any]:
    """Where and with what the figures were made."""
    from kosmos import KosmosForConditionalGeneration

    processor = build_processor(base)
    with torch.device("meta"):
        model = KosmosForConditionalGeneration(build_config(base.model, processor))
    return {
        "command": command,
        "date": date,
        "hardware": f"{os.cpu_count()} cores ({platform.machine()}), {study.jobs} runs at a time",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary": len(processor.tokenizer),
    }
