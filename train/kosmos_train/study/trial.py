"""A claim is tried: its runs are trained, each once, its cells are read, and what came out is written as one JSON.

    DIR/runs/KEY/           a run and its arm.json, named after its settings: claims share it
    DIR/readings/KEY/       one reading of a run
    PAGE/CLAIM.json         words of the claim, cells and comparisons with intervals, command, date, minutes of a core

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
from . import by_study, crossed, measures
from .claims import Claim, cell_name, key_of
from .crossed import Cell
from .inputs import make_corpus, make_vocabulary
from .jobs import Figures, Job, do_all, train_to_the_end

READING_COST = 0.1  # of a run's: only the progress bar asks
WORDS = ("claim", "name", "row", "paper", "says", "control", "figure", "limits", "axis", "logarithmic")


def prepare(claim: Claim, console: Console) -> None:
    """Make corpus and processor of a claim's runs, as far as they are missing.

    Raises:
        ValueError: the corpus' folder holds something else.
        FileNotFoundError: the checkpoint that the claim reads, or that its runs begin with, is not there.
    """
    if claim.checkpoint is not None:
        for checkpoint in dict.fromkeys(map(claim.checkpoint_of, claim.seeds)):
            _require(checkpoint, claim.needs, "checkpoint=RUN")
        return
    arm, point = next(claim.cells())
    config = claim.run_of(arm, point, claim.seeds[0])
    if config.model.checkpoint is not None:
        _require(config.model.checkpoint, claim.needs, "train.model.checkpoint=RUN")
    shards = [source.shards for source in config.data.sources]
    with Progress(console=console, transient=True) as progress:
        make_corpus(claim.recipe, claim.corpus, shards, claim.base, progress)
        for processor, changes in claim.processors().items():
            make_vocabulary(claim.tokenizer, processor, progress, changes)


def _require(checkpoint: str, needs: str, otherwise: str) -> None:
    try:
        find_model(checkpoint)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; {needs} makes it, or say {otherwise}") from error


def jobs_of(claim: Claim, folder: Path) -> tuple[list[Job], dict[tuple[str, str, int], str]]:
    """The runs and readings of a claim, runs first, and the name of each cell's reading."""
    runs: dict[str, Job] = {}
    readings: dict[str, Job] = {}
    named = {}
    for arm, point in claim.cells():
        for seed in claim.seeds:
            title, run = f"{cell_name(arm, point)}, seed {seed}", None
            if claim.checkpoint is None:
                run = _run_job(claim.run_of(arm, point, seed), title, folder)
                run = runs.setdefault(str(run.folder), run)
            job = _reading_job(claim, claim.reading(arm, point), seed, run, title, folder)
            named[arm, point, seed] = readings.setdefault(str(job.folder), job).name
    one_by_one = sorted(readings.values(), key=lambda job: job.after)  # a run is loaded once
    return [*runs.values(), *one_by_one], named


def _reading_job(claim: Claim, reading: dict[str, Any], seed: int, run: Job | None, title: str, folder: Path) -> Job:
    """One reading of a run, or where there is none of the claim's checkpoint."""
    where = str(run.folder) if run else claim.checkpoint_of(seed)
    asked: dict[str, Any] = {"run": run.folder.name} if run else {"checkpoint": _stamp(where)}
    if claim.measure == "task":
        reading, drawn = measures.without_demonstrations(reading, seed)
        asked["seed"] = drawn
        work = partial(measures.read_task, where, reading, drawn)
    else:
        work = partial(measures.read_run, where, reading)
    asked["read"] = reading
    cost, after = (READING_COST * run.cost, (run.name,)) if run else (1.0, ())
    return Job(f"reading {title}", work, folder / "readings" / key_of(asked), asked, 1, cost, after)


def _stamp(checkpoint: str) -> list[Any]:
    """What tells a checkpoint from another one that stood, or will stand, at the same place."""
    folder = find_model(checkpoint)
    return [str(folder), max(file.stat().st_mtime_ns for file in folder.iterdir())]


def _run_job(config: TrainConfig, title: str, folder: Path) -> Job:
    identity = settings.to_dict(config)
    if config.model.checkpoint is not None:
        identity["began as"] = _stamp(config.model.checkpoint)
    cost = float(config.steps * config.data.rows_per_step * config.data.row_tokens)
    return Job(title, partial(_train, config), folder / "runs" / key_of(identity), identity, config.steps, cost)


def _train(config: TrainConfig, folder: Path) -> Figures:
    train_to_the_end(config, folder)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {"steps": rows[-1]["step"], "tokens": rows[-1]["tokens"], "skipped": sum("skipped" in row for row in rows)}


def try_claim(claim: Claim, folder: Path, command: str = "", console: Console | None = None, jobs: int = 1) -> Any:
    """Do what is not done of a claim, and return what goes into its JSON."""
    console = console or Console(emoji=False)
    arms = {name: arm.what for name, arm in claim.arms.items()}
    if claim.measure == "study":
        cells, figures, arms = by_study.answers(claim, folder, console, jobs)
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
        "minutes": round(sum(one["processor_seconds"] for one in figures) / 60, 1),
        "runs": sum("steps" in one for one in figures),
        "seeds": claim.seeds,
        "items": max(len(cell.weight_N) for cell in cells.values()),
        "arms": arms,
        "cells": [{"arm": arm, "point": point, **_summary(cell)} for (arm, point), cell in cells.items()],
        "comparisons": [_compared(words, claim, by_name) for words in claim.comparisons],
    }


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
