"""Tuning in the trainer: PEFT's own loop, every ZeRO stage, a run that is killed, and what is left of it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from forks import Job, launch
from safetensors import safe_open

from kosmos import KosmosForConditionalGeneration, load, settings
from kosmos.cli import main
from kosmos.tuning import Tuning
from kosmos.tuning.methods import peft_config, prompt_config
from kosmos_train.build import build_model, build_processor
from kosmos_train.config import TrainConfig
from kosmos_train.optim import parameter_groups
from kosmos_train.runs import read_metrics

PEFT_TUNINGS: list[dict[str, Any]] = [
    {"method": "lora", "rank": 4, "alpha": 8.0},
    {"method": "lora", "rank": 4, "dora": True},
    {"method": "lora", "rank": 4, "rslora": True},
    {"method": "ia3"},
    {"method": "prefix", "tokens": 3},
    {"method": "prompt", "tokens": 3},
    {"method": "p_tuning", "tokens": 3},
]
OWN_TUNINGS: list[dict[str, Any]] = [
    {"method": "adapter", "reduction": 4.0},
    {"method": "adapter", "reduction": 4.0, "placement": "houlsby"},
]
# With nothing kept whole on every rank, as it is with the weights of a real model.
ZERO_3 = {"zero_stage": 3, "deepspeed": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}}


def label(tuning: dict[str, Any]) -> str:
    return "-".join(str(value) for value in tuning.values())


@pytest.fixture(scope="module")
def base(_world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with images, no dropout, not at its first values."""
    folder = tmp_path_factory.mktemp("tuning") / "base"
    values = {**_world, "model": {**_world["model"], "overrides": {"text_config": {"dropout": 0.0}}}}
    config = settings.from_dict(TrainConfig, values)
    processor = build_processor(config)
    model = build_model(config, processor)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    processor.save_pretrained(folder)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def tuning_values(values: dict[str, Any], base: str) -> dict[str, Any]:
    return values | {"model": {"checkpoint": base}, "optim": {"lr": 1e-2, "warmup": 2}}


def bare_peft_losses(values: dict[str, Any], tuning: Tuning, steps: int) -> list[list[float]]:
    """PEFT's model class, plain PyTorch, the engine's first values."""
    peft = pytest.importorskip("peft")
    config = settings.from_dict(TrainConfig, values)
    processor, ours = build_processor(config), build_model(config, build_processor(config))
    base = KosmosForConditionalGeneration.from_pretrained(values["model"]["checkpoint"]).train()
    layers = tuning.method in ("lora", "ia3")
    wanted = peft_config(base, tuning) if layers else prompt_config(tuning, base.config.text_config)
    model = peft.get_peft_model(base, wanted)
    begin = "base_model.model." if layers else "prompt_encoder.default."
    first = {
        begin + name.removeprefix("model.decoder.prompts.encoders.default."): value
        for name, value in ours.named_parameters()
        if value.requires_grad
    }
    assert {name for name, value in model.named_parameters() if value.requires_grad} == set(first)
    model.load_state_dict(first, strict=False)
    adam = torch.optim.AdamW(parameter_groups(model, config.optim), betas=config.optim.betas, eps=config.optim.eps)
    losses = []
    for step in range(1, steps + 1):
        parts = jobs.step_batch(step, processor, 0, 1).micro_batches
        total = sum(part["loss_weight"].sum() for part in parts)
        loss = sum(weighted_loss(model, part, processor) for part in parts) / total
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip)
        for group in adam.param_groups:
            group["lr"] = jobs.rate_of(step)
        adam.step()
        adam.zero_grad()
        losses.append([loss.item(), norm.item()])
    return losses


def weighted_loss(model: Any, part: dict[str, torch.Tensor], processor: Any) -> torch.Tensor:
    images = {}
    if "pixel_values" in part:
        images["pixel_values"] = processor.image_processor.normalize(part["pixel_values"])
    mask = (part["document_ids"] >= 0).long()
    logits = model(input_ids=part["input_ids"], attention_mask=mask, **images).logits
    logits = logits[:, -part["input_ids"].shape[1] :]  # PEFT leaves the virtual tokens in
    each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), part["shift_labels"].flatten(), reduction="none")
    return (each * part["loss_weight"].flatten()).sum()


@pytest.mark.parametrize("tuning", PEFT_TUNINGS, ids=label)
def test_losses_of_a_bare_peft_loop(tuning_values: dict[str, Any], tuning: dict[str, Any]) -> None:
    """Ten steps through the engine and through PEFT: the same losses and norms."""
    values = tuning_values | {"tuning": tuning}
    expected = bare_peft_losses(values, Tuning(**tuning), 10)
    found = jobs.engine_losses(values, [{"zero_stage": 1}], 10)[0]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-5, atol=1e-5)
    assert found[-1][0] < found[0][0]


@pytest.mark.slow
def test_stages_and_processes_give_the_same_losses(tuning_values: dict[str, Any], tmp_path: Path) -> None:
    """Every method under ZeRO 0 to 3, on one process and two."""
    tunings = [*PEFT_TUNINGS, *OWN_TUNINGS]
    stages = [{"zero_stage": stage} for stage in (0, 1, 2)] + [ZERO_3]
    both = launch(tmp_path / "j2", 2, jobs.tuning_losses, tuning_values, tunings, stages, 3)
    one = launch(tmp_path / "j1", 1, jobs.tuning_losses, tuning_values, tunings, stages, 3)
    expected = torch.tensor(one.results()[0])
    for tuning, losses in zip(tunings, expected, strict=True):
        torch.testing.assert_close(losses, losses[:1].expand_as(losses), rtol=1e-5, atol=1e-5, msg=label(tuning))
    for found in both.results():
        torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-5, atol=1e-5)


# What is trained on two processes: every method, every stage; the last two are then fused.
KILLED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("lora", {"method": "lora", "rank": 4, "dropout": 0.1, "also": ["model.connector.*"]}, ZERO_3),
    ("dora", {"method": "lora", "rank": 4, "dora": True}, {"zero_stage": 2}),
    ("prefix", {"method": "prefix", "tokens": 3}, {"zero_stage": 2}),
    ("p_tuning", {"method": "p_tuning", "tokens": 3}, {"zero_stage": 1}),
    ("prompt", {"method": "prompt", "tokens": 3}, {"zero_stage": 0}),
    ("ia3", {"method": "ia3"}, {"zero_stage": 0}),
    ("houlsby", OWN_TUNINGS[1], {"zero_stage": 2}),
    ("adapter", OWN_TUNINGS[0], ZERO_3),
    ("other", OWN_TUNINGS[0], {"zero_stage": 1}),
]


@pytest.mark.slow
def test_killed_and_resumed(tuning_values: dict[str, Any], tmp_path: Path) -> None:
    """kill -9 in the middle of a run of each method: the resumed losses, and what is saved, are the same."""
    common = {"steps": 5, "checkpoint": {"every": 2}, "data": tuning_values["data"] | {"rows_per_step": 4}}
    fusion = {"method": "fusion", "adapters": [str(tmp_path / "adapter-0"), str(tmp_path / "other-0")]}
    runs = {
        name: tuning_values | common | {"tuning": tuning, "engine": engine, "seed": seed}
        for seed, (name, tuning, engine) in enumerate([*KILLED, ("fusion", fusion, {"zero_stage": 2})])
    }
    straight = [(values, str(tmp_path / f"{name}-0")) for name, values in runs.items()]
    again = [(values, str(tmp_path / f"{name}-1")) for name, values in runs.items()]
    whole = launch(tmp_path / "straight", 2, jobs.run_each, straight)
    for number, (values, run) in enumerate(again):
        if values["tuning"] is fusion:
            whole.results()  # what it fuses
        kill_behind_a_checkpoint(launch(tmp_path / f"killed{number}", 2, jobs.run, values, run), Path(run))
    launch(tmp_path / "resumed", 2, jobs.run_each, again, True).results()
    for name in runs:
        expected, found = (read_metrics(tmp_path / f"{name}-{which}") for which in (0, 1))
        assert [row["step"] for row in found] == [row["step"] for row in expected] == [1, 2, 3, 4, 5]
        losses = [torch.tensor([row["loss"] for row in rows]) for rows in (expected, found)]
        torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=1e-6, msg=name)
        kept = [tmp_path / f"{name}-{which}/checkpoints/step-000005/adapter_model.safetensors" for which in (0, 1)]
        assert kept[0].read_bytes() == kept[1].read_bytes(), name


def kill_behind_a_checkpoint(job: Job, run: Path, step: int = 3) -> None:
    """kill -9 of both ranks once a step is logged."""
    deadline, lines = time.monotonic() + 300, run / "metrics.jsonl"
    while job.alive() and (not lines.exists() or len(lines.read_text().splitlines()) < step):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    for rank in range(2):
        job.kill(rank)
    assert job.wait(60) == [-9, -9]


@pytest.mark.slow
def test_a_run_its_scores_and_what_is_kept(tuning_values: dict[str, Any], tmp_path: Path) -> None:
    """A LoRA run with samples under ZeRO-3: only what learns is kept; fusion of two adapter runs; merge."""
    run = tmp_path / "lora"
    values = tuning_values | {
        "tuning": {"method": "lora", "rank": 4},
        "engine": ZERO_3,
        "steps": 3,
        "samples": {"every": 2, "prompts": [{"text": "An image of a"}], "max_new_tokens": 4},
    }
    jobs.run(values, str(run))
    kept = run / "checkpoints" / "step-000003"
    with safe_open(kept / "adapter_model.safetensors", framework="pt") as file:
        assert {key.rpartition("lora_")[2] for key in file.keys()} == {"A.weight", "B.weight"}  # noqa: SIM118
    assert not (kept / "model.safetensors").exists()
    assert json.loads((kept / "tuning.json").read_text())["base"] == values["model"]["checkpoint"]
    assert main(["merge", str(run), "--out", str(tmp_path / "merged")]) == 0
    ids = torch.randint(4, 60, (2, 12))
    expected = load(run)[0](input_ids=ids).logits
    torch.testing.assert_close(load(tmp_path / "merged")[0](input_ids=ids).logits, expected, atol=1e-5, rtol=0)
    for name in ("a", "b"):
        tuned = {"tuning": OWN_TUNINGS[0], "steps": 2, "seed": ord(name)}
        jobs.run(tuning_values | tuned, str(tmp_path / name))
    fusion = {"method": "fusion", "adapters": [str(tmp_path / "a"), str(tmp_path / "b")]}
    jobs.run(tuning_values | {"tuning": fusion, "steps": 2}, str(tmp_path / "fused"))
    assert torch.isfinite(load(tmp_path / "fused")[0](input_ids=ids).logits).all()


def test_mistakes_are_one_line(
    tuning_values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the first step, in the dry run too; exit code 2."""
    path = tmp_path / "run.yaml"
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"tuning": {"method": "lora", "targets": ["wq"]}}, "'wq' matches no linear layer; there are"),
        ({"tuning": {"method": "lora", "rank": 99}}, "tuning.rank=99 is larger than"),
        ({"tuning": {"method": "loar"}}, "tuning.method='loar': choose one of lora"),
        ({"tuning": {"methd": "lora"}}, "unknown key 'tuning.methd'; did you mean 'method'?"),
        ({"tuning": {}, "model": {"preset": "tiny"}}, "tuning needs model.checkpoint"),
    ]
    for change, message in mistakes:
        settings.write_yaml(tuning_values | change, path)
        assert main(["train", str(path), "--dry-run"]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    settings.write_yaml(tuning_values | {"tuning": {"method": "lora", "rank": 4}}, path)
    assert main(["train", str(path), "--dry-run"]) == 0
    assert "3,584 trainable" in capsys.readouterr().out.replace("\n", "")
