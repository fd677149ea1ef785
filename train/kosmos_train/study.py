"""Several objectives on the same text for as many positions: ``python -m kosmos_train.study CONFIG run=DIR``.

Each objective (and seed) is one ordinary run in ``DIR/NAME-SEED``, from the same base config; runs that are finished
are not made again. The table and ``DIR/results.json`` say for each: loss of plain causal modelling on held-out text,
share of the tokens that carried loss, tokens per second. Every step has the same number of positions, hence the decoder
does the same work whatever the objective (a text encoder's work comes on top).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from kosmos import settings

from .arguments import add_run_arguments, parse_run_arguments, require_run
from .config import TrainConfig
from .pretrain import train


@dataclass
class StudyConfig:
    """What is compared."""

    base: str = ""
    """The run's YAML that all share; its first source gets the objectives."""
    objectives: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name of a run → objective with its options."""
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name of a run → changes to the model's config that it alone needs."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Each objective is trained once with each."""
    steps: int | None = None
    """Replaces the base's; held-out loss is measured at the end."""


def configs(study: StudyConfig) -> dict[str, TrainConfig]:
    """The runs by name.

    Raises:
        ValueError: nothing to compare, a model for no objective, or a base without held-out text.
    """
    if not study.objectives:
        raise ValueError("study: objectives is empty: name at least one")
    if unknown := sorted(study.models.keys() - study.objectives.keys()):
        raise ValueError(f"study: models.{unknown[0]} belongs to no objective; there are {', '.join(study.objectives)}")
    runs = {}
    for name, objective in study.objectives.items():
        for seed in study.seeds:
            config = settings.load(TrainConfig, study.base)
            if config.eval.data is None:
                raise ValueError(f"{study.base}: eval.data is not set: the study compares held-out loss")
            config.data.sources[0].objective = dict(objective)
            config.model.overrides = {**config.model.overrides, **study.models.get(name, {})}
            config.seed = config.data.seed = seed
            config.steps = study.steps or config.steps
            config.optim.warmup = min(config.optim.warmup, config.steps)
            config.eval.every = config.checkpoint.every = config.steps
            runs[f"{name}-{seed}"] = config
    return runs


def run(study: StudyConfig, folder: Path) -> list[dict[str, Any]]:
    """Make every run that is not finished, then write and return one row for each."""
    rows = []
    for name, config in configs(study).items():
        path = folder / name
        if not _finished(path, config.steps):
            train(config, path, resume=path.exists())
        rows.append({"run": name} | summary(path))
    (folder / "results.json").write_text(json.dumps(rows, indent=1))
    return rows


def summary(path: Path) -> dict[str, float]:
    """The figures of a finished run, from its ``metrics.jsonl``."""
    steps = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return {
        "held_out_loss": steps[-1]["eval_loss"]["loss"],
        "loss_exposure": sum(row["supervised"] for row in steps) / steps[-1]["tokens"],
        "tokens_per_second": statistics.median(row["tokens_per_second"] for row in steps),
        "fallbacks": sum(row.get("fallbacks", 0) for row in steps),
    }


def _finished(path: Path, steps: int) -> bool:
    metrics = path / "metrics.jsonl"
    if not metrics.is_file():
        return False
    lines = metrics.read_text().splitlines()
    last = json.loads(lines[-1]) if lines else {}
    return last.get("step") == steps and "eval_loss" in last


def main(argv: Sequence[str]) -> None:
    """``python -m kosmos_train.study CONFIG run=DIR [key=value …]``."""
    parser = argparse.ArgumentParser(prog="python -m kosmos_train.study", description="Compare objectives.")
    add_run_arguments(parser)
    arguments, folder = parse_run_arguments(parser, argv)
    study = settings.load(StudyConfig, arguments.config, arguments.overrides)
    rows = run(study, Path(require_run(folder)))
    table = Table("run", "held-out causal loss", "loss exposure", "tokens/s", "fallbacks")
    for row in rows:
        figures = (f"{row['held_out_loss']:.4f}", f"{row['loss_exposure']:.1%}", f"{row['tokens_per_second']:.0f}")
        table.add_row(row["run"], *figures, str(row["fallbacks"]))
    Console().print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
