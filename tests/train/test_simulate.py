"""The simulated step of KOSMOS-1's recipe, and on how many GPUs it may run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kosmos import KosmosConfig, KosmosForConditionalGeneration, settings
from kosmos.cli import main as kosmos
from kosmos.cost import memory, model_cost
from kosmos_data.loader import rows_by_worker
from kosmos_train.config import TrainConfig
from kosmos_train.dry_run import plan
from kosmos_train.plan_table import _workers
from kosmos_train.roofline import GPUS, with_rates
from kosmos_train.simulate import Outline, outline, simulate, world_sizes

CONFIG = Path(__file__).resolve().parents[2] / "train" / "configs" / "kosmos1.yaml"


@pytest.fixture(scope="module")
def recipe() -> TrainConfig:
    return settings.load(TrainConfig, CONFIG)


@pytest.fixture(scope="module")
def run(recipe: TrainConfig) -> Outline:
    return outline(recipe)


def test_kosmos1_keeps_its_gpus_busy(recipe: TrainConfig, run: Outline) -> None:
    """At least 46 % of 64 H100 and 50 % of 64 H200, the output matrix counted for tokens with a label alone."""
    h100, h200 = (simulate(recipe, run, 64, with_rates(gpu), 12) for gpu in ("h100", "h200"))
    assert h100.mfu >= 0.46
    assert h200.mfu >= 0.50
    assert h100.mfu < h100.mfu_all
    assert sum(h100.memory.values()) < 72 * 2**30  # of 80 GB


def test_the_readme_says_what_is_simulated(recipe: TrainConfig, run: Outline) -> None:
    text = (CONFIG.parents[1] / "README.md").read_text(encoding="utf-8")
    for name, rates in (
        ("H100", with_rates("h100")),
        ("H200", with_rates("h200")),
        ("H100, one 400 Gb/s link a node (`--bus 45`)", with_rates("h100", bus=45.0)),
    ):
        found = simulate(recipe, run, 64, rates, 12)
        memory = sum(found.memory.values()) / 2**30
        row = f"| {name} | {found.milliseconds:.0f} ms | {found.mfu:.1%} | {found.mfu_all:.1%} | {memory:.1f} GiB |"
        assert row.replace("%", " %") in text


def test_what_is_left_out_costs_time(recipe: TrainConfig, run: Outline) -> None:
    """Recomputation, small micro-batches, single kernels and a slow network: each makes the step longer."""
    best = simulate(recipe, run, 64, GPUS["h100"], 12).milliseconds
    for change in (
        ["model.activation_checkpointing=true"],
        ["data.rows_per_micro_batch=3"],
        ["model.compile=false"],
        ["engine.zero_stage=3", "model.compile=false"],
    ):
        changed = settings.load(TrainConfig, CONFIG, change)
        assert simulate(changed, run, 64, GPUS["h100"], 12).milliseconds > best + 5
    assert simulate(recipe, run, 64, with_rates("h100", bus=45.0), 12).milliseconds > best + 50
    with pytest.raises(ValueError, match="40 pictures take 2560 places, but a row has 2048"):
        simulate(recipe, run, 64, GPUS["h100"], 40)


def test_sizes_that_the_recipe_allows(recipe: TrainConfig) -> None:
    """A node less than 8 is not among them; two less is, with smaller micro-batches."""
    assert world_sizes(recipe, 72) == {8: 9, 16: 9, 24: 8, 32: 9, 48: 6, 64: 9, 72: 8}
    for gpus, rows in world_sizes(recipe, 288).items():
        settings.load(TrainConfig, CONFIG, [f"data.rows_per_micro_batch={rows}"]).check(gpus)


def test_command_prints_its_assumptions(capsys: pytest.CaptureFixture[str]) -> None:
    assert kosmos(["simulate", str(CONFIG), "--gpus", "64", "--gpu", "h200", "--products", "700"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for words in ("simulated: no GPU has run this", "products 700", "memory 4", "images-per-row 12", "MFU"):
        assert words in shown
    assert kosmos(["simulate", str(CONFIG), "--gpu", "tpu"]) == 2
    assert "gpu 'tpu' is not known" in capsys.readouterr().err
    assert kosmos(["simulate", str(CONFIG), "--gpus", "60"]) == 2
    assert "60 ranks cannot share data.rows_per_step=576" in capsys.readouterr().err


def test_muon_keeps_one_moment(values: dict[str, Any]) -> None:
    """The dry run takes 4 bytes of a matrix less where Muon moves it."""
    values["engine"] = {"zero_stage": 1, "precision": "bf16"}
    adam = plan(settings.from_dict(TrainConfig, values), 1)
    values["optim"]["name"] = "muon"
    muon = plan(settings.from_dict(TrainConfig, values), 1)
    matrices = 2 * (4 * 32 * 32 + 2 * 32 * 64)
    assert adam.memory["optimiser, fp32"] - muon.memory["optimiser, fp32"] == 4 * matrices


def test_output_matrix_counts_for_labels_alone() -> None:
    config = KosmosConfig.preset("tiny")
    with torch.device("meta"):
        cost = model_cost(KosmosForConditionalGeneration(config), 64)
    matrix = 6 * config.text_config.vocab_size * config.text_config.hidden_size
    none = {"image": 0.0}
    assert cost.flops(100, none) - cost.flops(100, none, 40) == 60 * matrix
    assert "DeepSpeed's buckets, about" in memory(cost, config, 1, 64, checkpointing=False, zero_stage=2, gpus=2)


def test_unequal_workers_are_named(recipe: TrainConfig) -> None:
    """The recipe's make a row each; with 8 workers for 9 rows one would make two, step after step."""
    assert rows_by_worker(recipe.data, 64) == [1] * 9
    eight = settings.load(TrainConfig, CONFIG, ["data.workers=8"])
    assert rows_by_worker(eight.data, 64) == [2, 1, 1, 1, 1, 1, 1, 1]
    assert _workers(eight, 64) == {
        "loader": "rows of a step by worker of a rank: 2, 1, 1, 1, 1, 1, 1, 1; data.workers=3 would share evenly"
    }
    assert _workers(recipe, 64) == _workers(settings.load(TrainConfig, CONFIG, ["data.workers=0"]), 64) == {}
