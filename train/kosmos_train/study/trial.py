"""A claim is tried: its runs are trained, each once, its cells are read, and what came out is written as one JSON.

    DIR/runs/KEY/           a run and its arm.json, named after its settings: claims share it
    DIR/readings/KEY/       one reading of a run
    PAGE/CLAIM.json         words of the claim, cells and comparisons with intervals, command, date, minutes

Finished parts are not repeated: after a kill, the same command goes on.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from kosmos import settings
from kosmos.atomic import write_atomically
from kosmos.loading import find_model

from ..config import TrainConfig
from ..named_configs import find_config
from ..pretrain import train
from . import crossed, measures
from .claims import Claim, cell_name, key_of, merged
from .crossed import Cell
from .inputs import make_corpus, make_vocabulary
from .jobs import Figures, Job, do_all

READING_COST = 0.1  # of a run's: only the progress bar asks
WORDS = ("claim", "name", "row", "paper", "says", "control", "figure", "limits", "axis", "logarithmic")


def prepare(claim: Claim, console: Console) -> None:
    """Make corpus and processor of a claim's runs, as far as they are missing.

    Raises:
        ValueError: the corpus' folder holds something else.
        FileNotFoundError: the checkpoint that the claim reads is not there.
    """
    if claim.checkpoint is not None:
        try:
            find_model(claim.checkpoint)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}; {claim.needs} makes it, or say checkpoint=RUN") from error
        return
    arm, point = next(claim.cells())
    config = claim.run_of(arm, point, claim.seeds[0])
    shards = [source.shards for source in config.data.sources]
    with Progress(console=console, transient=True) as progress:
        make_corpus(claim.recipe, claim.corpus, shards, claim.base, progress)
        for arm, point in claim.cells():
            processor = claim.run_of(arm, point, claim.seeds[0]).processor
            make_vocabulary(claim.tokenizer, processor, progress, claim.arms[arm].tokenizer)


def jobs_of(claim: Claim, folder: Path) -> tuple[list[Job], dict[tuple[str, str, int], str]]:
    """The runs and readings of a claim, runs first, and the name of each cell's reading."""
    runs: dict[str, Job] = {}
    readings: dict[str, Job] = {}
    named = {}
    for arm, point in claim.cells():
        for seed in claim.seeds:
            reading = claim.reading(arm, point)
            title = f"{cell_name(arm, point)}, seed {seed}"
            if claim.checkpoint is not None:
                reading, drawn = measures.without_demonstrations(reading, seed)
                asked = {"checkpoint": _stamp(claim.checkpoint), "read": reading, "seed": drawn}
                work = partial(measures.read_task, claim.checkpoint, reading, drawn)
                job = Job(f"reading {title}", work, folder / "readings" / key_of(asked), asked, 1, 1.0)
            else:
                run = _run_job(claim.run_of(arm, point, seed), title, folder)
                run = runs.setdefault(str(run.folder), run)
                asked = {"run": run.folder.name, "read": reading}
                if claim.measure == "task":  # a run has one seed, and its demonstrations the same
                    work = partial(measures.read_task, str(run.folder), reading, seed)
                else:
                    work = partial(measures.read_run, str(run.folder), reading)
                place = folder / "readings" / key_of(asked)
                job = Job(f"reading {title}", work, place, asked, 1, READING_COST * run.cost, (run.name,))
            named[arm, point, seed] = readings.setdefault(str(job.folder), job).name
    one_by_one = sorted(readings.values(), key=lambda job: job.after)  # a run is loaded once
    return [*runs.values(), *one_by_one], named


def _stamp(checkpoint: str) -> list[Any]:
    """What tells a checkpoint from another one that stood, or will stand, at the same place."""
    folder = find_model(checkpoint)
    return [str(folder), max(file.stat().st_mtime_ns for file in folder.iterdir())]


def _run_job(config: TrainConfig, title: str, folder: Path) -> Job:
    identity = settings.to_dict(config)
    cost = float(config.steps * config.data.rows_per_step * config.data.row_tokens)
    return Job(title, partial(_train, config), folder / "runs" / key_of(identity), identity, config.steps, cost)


def _train(config: TrainConfig, folder: Path) -> Figures:
    outcome = train(config, folder, resume=True)
    if not outcome.finished:
        raise RuntimeError("a signal ended it; start the study again to go on")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {"steps": rows[-1]["step"], "tokens": rows[-1]["tokens"], "skipped": sum("skipped" in row for row in rows)}


def try_claim(claim: Claim, folder: Path, command: str = "", console: Console | None = None, jobs: int = 1) -> Any:
    """Do what is not done of a claim, and return what goes into its JSON."""
    console = console or Console(emoji=False)
    if claim.measure == "study":
        cells, figures = by_study(claim, folder, console, jobs)
    else:
        prepare(claim, console)
        work, named = jobs_of(claim, folder)
        figures = list(do_all(work, jobs, console).values())
        by_job = dict(zip((job.name for job in work), figures, strict=True))
        cells = {cell: _cell([by_job[named[*cell, seed]] for seed in claim.seeds]) for cell in claim.cells()}
    by_name = {cell_name(*cell): found for cell, found in cells.items()}
    return {
        **{word: getattr(claim, word) for word in WORDS},
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "hardware": f"{jobs} of {os.cpu_count()} cores ({platform.machine()}), load {os.getloadavg()[2]:.0f}",
        "minutes": round(sum(one["seconds"] for one in figures) / 60, 1),
        "runs": sum("steps" in one for one in figures),
        "seeds": claim.seeds,
        "items": max(len(cell.weight_N) for cell in cells.values()),
        "arms": {name: arm.what for name, arm in claim.arms.items()},
        "cells": [{"arm": arm, "point": point, **_summary(cell)} for (arm, point), cell in cells.items()],
        "comparisons": [_compared(words, claim, by_name) for words in claim.comparisons],
    }


def by_study(
    claim: Claim, folder: Path, console: Console, jobs: int
) -> tuple[dict[tuple[str, str], Cell], list[Figures]]:
    """The cells of a claim that a study of objectives answers, and the figures of all its jobs.

    Held-out loss of each objective, one value a seed of pretraining; accuracy of each tuned arm on each set, by item.
    """
    from . import run as studies  # it needs all parts of the trainer

    values = merged(settings.read_yaml(find_config(claim.base)), claim.train)
    study = settings.from_dict(studies.StudyConfig, {**values, "jobs": jobs}, f"claim {claim.name}: ")
    own = (folder / "studies" / claim.name).resolve()  # jobs know their paths; a link leads to a study that is done
    studies.run(study, own, claim.name, console)
    cells = {}
    for objective in study.objectives:
        losses = [_figures(own / f"{objective}-{seed}")["held_out_loss"] for seed in study.seeds]
        cells[objective, "held-out loss"] = Cell(np.array(losses)[:, None], np.ones(1))
    for name in study.tuning.sets:
        for arm in study.tuning.arms:
            right = [_figures(own / "tuning" / name / f"{arm}-{seed}")["right"] for seed in study.tuning.seeds]
            cells[arm, name] = Cell(np.array(right, dtype=float), np.ones(len(right[0])))
    return cells, [_figures(path.parent) for path in own.rglob("arm.json")]


def _figures(folder: Path) -> Figures:
    return json.loads((folder / "arm.json").read_text(encoding="utf-8"))["figures"]


def _cell(readings: Sequence[Figures]) -> Cell:
    """The readings of all seeds of one cell."""
    return Cell(np.array([one["values"] for one in readings]), np.array(readings[0]["weights"], dtype=float))


def _summary(cell: Cell) -> dict[str, Any]:
    value, low, high = crossed.interval(cell)
    return {"value": _short(value), "low": _short(low), "high": _short(high), "seeds": [_short(x) for x in cell.seeds]}


def _compared(words: str, claim: Claim, cells: dict[str, Cell]) -> dict[str, Any]:
    wanted = claim.comparisons[words]
    found = _summary(crossed.combined([(weight, cells[term]) for term, weight in wanted.terms.items()]))
    return {"words": words, **found, "expect": wanted.expect, "than": wanted.than, "verdict": verdict(found, wanted)}


def verdict(found: dict[str, Any], wanted: Any) -> str:
    """Whether a comparison ``holds``, does ``not`` hold, or is ``open``: its interval has numbers of both sides."""
    above, below = found["low"] > wanted.than, found["high"] < wanted.than
    if not (above or below):
        return "open"
    return "holds" if above == (wanted.expect == "above") else "not"


def _short(value: float) -> float:
    return round(value, 4)


def write(found: dict[str, Any], page: Path) -> Path:
    """Write a claim's JSON into the page's folder."""
    path = page.with_suffix("") / f"{found['name']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return path
