"""Claims that a study of objectives answers (``measure: study``): held-out losses, and accuracies after fine-tuning."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
from rich.console import Console

from kosmos import settings

from ..named_configs import find_config
from . import run, tuning
from .claims import Claim, key_of, merged
from .crossed import Cell
from .jobs import Figures
from .run import StudyConfig

LOSS, COMMONEST = "held-out loss", "commonest label"


def answers(
    claim: Claim, folder: Path, console: Console, jobs: int
) -> tuple[dict[tuple[str, str], Cell], list[Figures], dict[str, str]]:
    """Do what is not done of a claim's study, which all claims that ask the same one share.

    Returns:
        The cells: held-out loss of each objective, one value a seed of pretraining; accuracy of each tuned arm on each
        set, by item, and that of the commonest label. Then the figures of all jobs, and what each arm is.

    Raises:
        ValueError: a comparison names a cell that the study does not have.
    """
    values = merged(settings.read_yaml(find_config(claim.base)), claim.train)
    study = dataclasses.replace(settings.from_dict(StudyConfig, values, f"claim {claim.name}: "), jobs=jobs)
    shown = [cell for cell in measured(study) if not claim.arms or cell[0] in claim.arms]
    claim.check_terms(shown)
    # Jobs know their paths; a link leads to a study that is done.
    own = (folder / "studies" / key_of({**values, "jobs": None})).resolve()
    run.run(study, own, claim.name, console)
    cells = {(arm, point): _cell(study, own, arm, point) for arm, point in shown}
    return cells, [_figures(path.parent) for path in own.rglob("arm.json")], _arms(claim, study, own)


def measured(study: StudyConfig) -> list[tuple[str, str]]:
    """What a study measures: objectives by held-out loss, tuned arms by sets."""
    losses = [(objective, LOSS) for objective in study.objectives]
    return losses + [(arm, name) for name in study.tuning.sets for arm in [*study.tuning.arms, COMMONEST]]


def _cell(study: StudyConfig, own: Path, arm: str, point: str) -> Cell:
    if point == LOSS:
        losses = [_figures(own / f"{arm}-{seed}")["held_out_loss"] for seed in study.seeds]
        return Cell(np.array(losses)[:, None], np.ones(1))
    seeds, data = study.tuning.seeds, own / "tuning" / point
    if arm == COMMONEST:
        right = [tuning.commonest_is_right(data)] * len(seeds)
    else:
        right = [_figures(data / f"{arm}-{seed}")["right"] for seed in seeds]
    return Cell(np.array(right, dtype=float), np.ones(len(right[0])))


def _arms(claim: Claim, study: StudyConfig, own: Path) -> dict[str, str]:
    """The claim's words on each arm, how many parameters the tuned ones leave, and the rates that were chosen."""
    arms = {name: arm.what for name, arm in claim.arms.items()}
    for name in arms.keys() & study.tuning.arms.keys():
        (first, *_), (seed, *_) = study.tuning.sets, study.tuning.seeds
        count = f"{_figures(own / 'tuning' / first / f'{name}-{seed}')['parameters']:,} parameters"
        if study.tuning.rates:
            chosen = [_figures(own / "tuning" / each / f"{name}-{seed}")["rate"] for each in study.tuning.sets]
            count += f", rates {' and '.join(f'{rate:g}' for rate in chosen)}"
        arms[name] = f"{arms[name]}; {count}" if arms[name] else count
    return arms


def _figures(folder: Path) -> Figures:
    return json.loads((folder / "arm.json").read_text(encoding="utf-8"))["figures"]
