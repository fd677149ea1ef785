"""A run that is too large for its GPU is refused with what would fit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kosmos import settings
from kosmos_train.config import TrainConfig
from kosmos_train.fitting import check_memory
from kosmos_train.simulate import outline

CONFIG = Path(__file__).resolve().parents[2] / "train" / "configs" / "kosmos1.yaml"


def test_too_little_memory_says_what_would_fit() -> None:
    """KOSMOS-1's recipe on 64 GPUs: fewer rows, then what is recomputed; each hint is taken and then fits."""
    config = settings.load(TrainConfig, CONFIG)
    run = outline(config)
    check_memory(config, run.model, run.cost, 64, 79e9)
    hints = []
    for free in (20e9, 9.8e9):
        with pytest.raises(ValueError, match=f"but {free / 2**30:.1f} are free; .* would fit") as refused:
            check_memory(config, run.model, run.cost, 64, free)
        said = str(refused.value)
        assert "\n" not in said
        hints.append(re.findall(r"\w+\.\w+=\w+", said))
        check_memory(settings.load(TrainConfig, CONFIG, hints[-1]), run.model, run.cost, 64, free)
    rows = "data.rows_per_micro_batch=3"
    assert hints == [[rows], [rows, "model.activation_checkpointing=true"]]
    with pytest.raises(ValueError, match="no setting would: take more GPUs, larger ones or a smaller model"):
        check_memory(config, run.model, run.cost, 64, 1e9)
