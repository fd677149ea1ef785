"""Muon on whole matrices, however ZeRO cuts them: equal to a plain loop with the formula of its authors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from forks import launch
from test_checkpoint import train_a_little

from kosmos_train.muon import Muon, orthogonalize

STEPS = 6
MUON = {"name": "muon", "muon": {"lr": 0.03, "momentum": 0.9}, "weight_decay": 0.1}


def with_muon(values: dict[str, Any]) -> dict[str, Any]:
    values["model"]["overrides"] = {"text_config": {"dropout": 0.0}}
    values["data"]["rows_per_step"] = 12
    values["optim"] = {**values.get("optim", {}), **MUON}
    return values


def textbook(gradient: torch.Tensor, state: dict[str, torch.Tensor], mu: float) -> torch.Tensor:
    """The update of Jordan's reference code, in float64, without the learning rate."""
    gradient = gradient.double()
    momentum = state["m"] = mu * state.get("m", torch.zeros_like(gradient)) + (1 - mu) * gradient
    x = (1 - mu) * gradient + mu * momentum
    x = x / (x.square().sum().sqrt() + 1e-7)
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * (x @ x.T) @ x + 2.0315 * (x @ x.T) @ (x @ x.T) @ x
    rows, columns = gradient.shape
    return x * math.sqrt(max(1.0, rows / columns))


def plain_losses(values: dict[str, Any]) -> list[list[float]]:
    """The reference: one process, one big padded batch, torch's AdamW beside the textbook's Muon."""
    from kosmos import settings
    from kosmos_train.build import build_model, build_processor
    from kosmos_train.config import TrainConfig

    config = settings.from_dict(TrainConfig, values)
    processor = build_processor(config)
    model = build_model(config, processor).train()
    optim, states = config.optim, {}
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    mine = {name: w for name, w in trained.items() if ".decoder.layers." in name and w.ndim == 2}
    assert len(mine) == 12  # q, k, v, out, fc1, fc2 of two layers
    others = [value for name, value in trained.items() if name not in mine]
    groups = [{"params": [w for w in others if w.ndim >= 2]}, {"params": [w for w in others if w.ndim < 2]}]
    groups[1]["weight_decay"] = 0.0
    adam = torch.optim.AdamW(groups, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay)
    losses = []
    for step in range(1, STEPS + 1):
        parts = jobs.step_batch(step, processor, 0, 1, total=12).micro_batches
        batch = {name: torch.cat([part[name] for part in parts]) for name in parts[0] if name != "pixel_values"}
        pixels = torch.cat([part["pixel_values"] for part in parts if "pixel_values" in part])
        batch["pixel_values"] = processor.image_processor.normalize(pixels)
        batch.pop("source_ids")
        loss = model(**batch).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip)
        rate = jobs.rate_of(step) * optim.muon.lr / optim.lr
        for name, weight in mine.items():
            update = textbook(weight.grad, states.setdefault(name, {}), optim.muon.momentum)
            weight.data.mul_(1 - rate * optim.weight_decay).sub_((rate * update).float())
        for group in adam.param_groups:
            group["lr"] = jobs.rate_of(step)
        for weight in mine.values():
            weight.grad = None
        adam.step()
        model.zero_grad()
        losses.append([loss.item(), norm.item()])
    return losses


@pytest.mark.slow
def test_equal_to_the_textbook_under_every_stage(values: dict[str, Any], tmp_path: Path) -> None:
    """ZeRO 0/1/2 on 1, 2 and 3 processes: with three, most matrices lie on two ranks and some on all."""
    values = with_muon(values)
    stages = [{"zero_stage": stage, "precision": "fp32"} for stage in (0, 1, 2)]
    running = [launch(tmp_path / str(size), size, jobs.engine_losses, values, stages, STEPS, 12) for size in (1, 2, 3)]
    expected = torch.tensor(plain_losses(values))
    assert expected[-1, 0] < expected[0, 0]
    for job in running:
        for rank_losses in job.results():
            torch.testing.assert_close(torch.tensor(rank_losses), expected.expand(3, -1, -1), rtol=1e-5, atol=1e-5)


def test_bf16_differs_by_rounding_only(values: dict[str, Any]) -> None:
    variants = [{"zero_stage": stage, "precision": dtype} for stage, dtype in ((1, "fp32"), (1, "bf16"), (2, "bf16"))]
    plain, *rounded = torch.tensor(jobs.engine_losses(with_muon(values), variants, 4))[..., 0]
    for losses in rounded:
        torch.testing.assert_close(losses, plain, rtol=1e-2, atol=0)


@pytest.mark.slow
def test_another_world_size_and_stage_go_on_exactly(values: dict[str, Any], tmp_path: Path) -> None:
    """The momentum of two processes under ZeRO-2 is gathered by one without ZeRO, and spread again."""
    values = with_muon(values)
    straight = jobs.engine_losses(values, [{"zero_stage": 1}], 6)[0]
    found: list[list[float]] = []
    for size, stage in ((2, 2), (1, 0), (2, 1)):
        here, before = tmp_path / f"{size}{stage}", tmp_path / "before"
        engine, source = {"zero_stage": stage}, str(before) if before.exists() else None
        found += launch(tmp_path / "j", size, train_a_little, values, str(here), engine, source).results()[0]
        before.unlink(missing_ok=True)
        before.symlink_to(here)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(straight), rtol=1e-5, atol=1e-5)


def test_a_momentum_alone_is_no_state_of_adamw(values: dict[str, Any], tmp_path: Path) -> None:
    train_a_little(values, str(tmp_path), {"zero_stage": 1}, None)
    values["optim"]["name"] = "muon"
    train_a_little(values, str(tmp_path / "muon"), {"zero_stage": 1}, str(tmp_path))  # the momentum is AdamW's first
    values["optim"]["name"] = "adamw"
    with pytest.raises(ValueError, match=r"exp_avg_sq of .* covers 0 of .* the same optim.name"):
        train_a_little(values, str(tmp_path / "adamw"), {"zero_stage": 1}, str(tmp_path / "muon"))


@pytest.mark.parametrize("shape", [(8, 8), (5, 40), (40, 5), (1, 7)])
def test_orthogonalize_moves_singular_values_near_to_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    made = orthogonalize(matrix)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    values = torch.diag(u.T @ made @ v.T)  # the same singular vectors, other values
    torch.testing.assert_close(u @ torch.diag(values) @ v, made, rtol=0, atol=1e-4)
    assert values.min() > 0.6
    assert values.max() < 1.25


def test_agrees_with_torch() -> None:
    """On one process: the textbook's steps, and those of torch.optim.Muon, which rounds to bf16."""
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(24, 12))]
    weights.append(torch.nn.Parameter(weights[0].detach().clone()))
    expected, state = weights[0].detach().clone(), {}
    ours = Muon(weights[:1], lr=0.02, weight_decay=0.1, momentum=0.95)
    theirs = torch.optim.Muon(weights[1:], lr=0.02, weight_decay=0.1, momentum=0.95)
    for step in range(4):
        weights[0].grad = weights[1].grad = torch.randn(24, 12)
        expected = expected * (1 - 0.02 * 0.1) - 0.02 * textbook(weights[0].grad, state, 0.95).float()
        ours.step()
        theirs.step()
        torch.testing.assert_close(weights[0].detach(), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(weights[1].detach(), expected, rtol=0, atol=2e-3 * (step + 1))


def test_muon_needs_whole_matrices(values: dict[str, Any]) -> None:
    from kosmos import settings
    from kosmos_train.config import TrainConfig

    for engine in ({"zero_stage": 3}, {"zero_stage": 2, "offload_optimizer": True}):
        config = settings.from_dict(TrainConfig, {**with_muon(values), "engine": engine})
        with pytest.raises(ValueError, match=r"muon needs whole matrices: engine\.zero_stage 0 to 2"):
            config.check(1)


@pytest.mark.parametrize(
    ("optim", "message"),
    [({"lr": 0.0}, r"optim\.lr=0\.0 must be above 0"), ({"muon": {"momentum": 1.0}}, r"momentum=1\.0 must lie")],
)
def test_rates_that_cannot_work(values: dict[str, Any], optim: dict[str, Any], message: str) -> None:
    from kosmos import settings
    from kosmos_train.config import TrainConfig

    values = with_muon(values)
    values["optim"] |= optim
    with pytest.raises(ValueError, match=message):
        settings.from_dict(TrainConfig, values).check(1)
