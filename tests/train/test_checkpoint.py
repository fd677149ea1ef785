"""Checkpoints: whole or not there, readable by any number of processes and any ZeRO stage, and by transformers."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from forks import launch
from safetensors.torch import load_file

from kosmos_train import checkpoint


def train_a_little(
    values: dict[str, Any], folder: str, engine: dict[str, Any], resume: str | None
) -> list[list[float]]:
    """Two steps and a checkpoint; or, from a checkpoint, two more steps. Losses and norms of these steps."""
    from kosmos_train.build import build_processor

    values = {**values, "engine": engine}
    source = checkpoint.find_latest(Path(resume)) if resume else None
    made = jobs.make_engine(values, source)
    processor, first = build_processor(made.config), 1
    if source:
        state = checkpoint.read_state(source)
        made.restore(source, state)
        first = state["step"] + 1
    losses = []
    for step in range(first, first + 2):
        batch = jobs.step_batch(step, processor, made.world.rank, made.world.size)
        result = made.step(batch, step, jobs.rate_of(step), {})
        losses.append([result.loss, result.grad_norm])
    jobs.save(Path(folder), first + 1, made, processor, {"frozen": {}}, keep=2)
    made.close()
    return losses


def no_dropout(values: dict[str, Any]) -> dict[str, Any]:
    values["model"]["overrides"] = {"text_config": {"dropout": 0.0}}
    return values


STAGES = [{"zero_stage": stage} for stage in (0, 1, 2, 3)] + [
    {"zero_stage": stage, "precision": "bf16"} for stage in (1, 2)
]


def matrix(values: dict[str, Any], root: str, resume: str | None) -> list[list[list[float]]]:
    """:func:`train_a_little` under every stage, from the checkpoints under ``resume`` of the *next* stage."""
    results = []
    for index, engine in enumerate(STAGES):
        same = [other for other in STAGES if other.get("precision") == engine.get("precision")]
        source = STAGES.index(same[(same.index(engine) + 1) % len(same)])
        where = f"{resume}/{source}" if resume else None
        results.append(train_a_little(values, f"{root}/{index}", engine, where))
    return results


@pytest.mark.slow
def test_other_world_sizes_and_stages_go_on_exactly(values: dict[str, Any], tmp_path: Path) -> None:
    """2 processes → 1 → 2, each under another ZeRO stage than the one that wrote: as if never stopped."""
    values = no_dropout(values)
    straight = launch(tmp_path / "s", 1, jobs.engine_losses, values, STAGES, 6)
    two = launch(tmp_path / "j2", 2, matrix, values, str(tmp_path / "two"), None).results()[0]
    one = launch(tmp_path / "j1", 1, matrix, values, str(tmp_path / "one"), str(tmp_path / "two")).results()[0]
    last = launch(tmp_path / "j3", 2, matrix, values, str(tmp_path / "last"), str(tmp_path / "one")).results()[0]
    expected = torch.tensor(straight.results()[0])
    found = torch.cat([torch.tensor(part) for part in (two, one, last)], dim=1)
    torch.testing.assert_close(found[:4], expected[:4], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[4:, :, 0], expected[4:, :, 0], rtol=3e-3, atol=0)  # bf16 order of reduction


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_resume_is_bit_exact(values: dict[str, Any], tmp_path: Path, stage: int) -> None:
    """With dropout on: save, load into a fresh engine, and every later loss is the same to the last bit."""
    engine = {"zero_stage": stage}
    first = jobs.engine_losses(values, [engine], 4)[0]
    train_a_little(values, str(tmp_path), engine, None)
    second = train_a_little(values, str(tmp_path), engine, str(tmp_path))
    assert second == first[2:]


def rewind_in_place(values: dict[str, Any], folder: str) -> list[list[bool]]:
    """Under every stage: save, train on, restore into the same engine; are weights and later losses those of before?"""
    outcomes = []
    for index, variant in enumerate(STAGES):
        engine = jobs.make_engine({**values, "engine": variant})
        processor = jobs.build_processor_of(engine)

        def step(number: int, engine: Any = engine, processor: Any = processor) -> float:
            batch = jobs.step_batch(number, processor, engine.world.rank, engine.world.size)
            return engine.step(batch, number, jobs.rate_of(number), {}).loss

        step(1)
        where = Path(folder) / str(index)
        jobs.save(where, 1, engine, processor, {"frozen": {}}, keep=1)
        first = [step(2), step(3)]
        latest = where / "step-000001"
        engine.restore(latest, checkpoint.read_state(latest))
        weights, saved = engine.full_weights(engine.world.is_main), load_file(latest / "model.safetensors")
        same = all(torch.equal(weights[name], saved[name]) for name in saved) if weights else True
        outcomes.append([same, [step(2), step(3)] == first])
        engine.close()
    return outcomes


def test_restore_in_place(values: dict[str, Any], tmp_path: Path) -> None:
    """Rewinding takes back weights, moments and step counts under every stage, on two processes, bit for bit."""
    for outcomes in launch(tmp_path / "j", 2, rewind_in_place, values, str(tmp_path)).results():
        assert outcomes == [[True, True]] * len(STAGES)


def test_opens_with_transformers(values: dict[str, Any], tmp_path: Path) -> None:
    """A checkpoint is an ordinary model folder with the trained weights, tied ones stored once."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    import kosmos  # noqa: F401 - registers the classes

    engine = jobs.make_engine(values)
    processor = jobs.build_processor_of(engine)
    engine.step(jobs.step_batch(1, processor, 0, 1), 1, 1e-2, {})
    path = jobs.save(tmp_path, 1, engine, processor, {"frozen": {}}, keep=1)
    model = AutoModelForImageTextToText.from_pretrained(path)
    for name, value in engine.model.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=0)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert AutoProcessor.from_pretrained(path).encode_text("the red fish") == processor.encode_text("the red fish")
    assert not [file for file in path.rglob("*") if file.suffix in (".pt", ".bin", ".pkl")]
    engine.close()


@pytest.fixture
def saved(values: dict[str, Any], tmp_path: Path) -> tuple[Any, Any, Path]:
    """An engine, its processor, and a folder with the checkpoint of step 1."""
    engine = jobs.make_engine(values)
    processor = jobs.build_processor_of(engine)
    jobs.save(tmp_path, 1, engine, processor, {"frozen": {}}, keep=3)
    yield engine, processor, tmp_path
    engine.close()


def test_half_checkpoints_are_passed_over(saved: tuple[Any, Any, Path]) -> None:
    """A missing or short file, or a missing manifest: the older whole one is taken."""
    _, _, folder = saved
    whole = folder / "step-000001"
    for damage in ("missing", "short", "manifest"):
        half = folder / "step-000002"
        shutil.copytree(whole, half)
        weights = half / "model.safetensors"
        if damage == "missing":
            weights.unlink()
        elif damage == "short":
            os.truncate(weights, weights.stat().st_size // 2)
        else:
            (half / "trainer" / "manifest.json").unlink()
        assert checkpoint.find_latest(folder) == whole
        shutil.rmtree(half)
    (folder / ".step-000002.partial").mkdir()
    shutil.copytree(whole, folder / "step-000002-mine")
    assert checkpoint.find_latest(folder) == whole


def test_keeps_the_newest_and_cleans_up(saved: tuple[Any, Any, Path]) -> None:
    engine, processor, folder = saved
    (folder / ".step-000099.partial").mkdir()  # left by a kill
    for step in (2, 1_000_000, 1_000_001):
        jobs.save(folder, step, engine, processor, {"frozen": {}}, keep=2)
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "step-1000000", "step-1000001"]
    assert (folder / "latest").read_text() == "step-1000001\n"
    assert checkpoint.find_latest(folder) == folder / "step-1000001"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_full_disk_leaves_the_last_one(saved: tuple[Any, Any, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC from the real device: an error that says what is left, nothing half, and the next save works."""
    engine, processor, folder = saved

    def fill(*_: Any, **__: Any) -> None:
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")

    with monkeypatch.context() as patch:
        patch.setattr(type(engine.model), "save_pretrained", fill)
        with pytest.raises(OSError, match=r"No space left on device; the last whole one is .*step-000001"):
            jobs.save(folder, 2, engine, processor, {"frozen": {}}, keep=3)
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "step-000001"]
    jobs.save(folder, 2, engine, processor, {"frozen": {}}, keep=3)
    assert checkpoint.find_latest(folder) == folder / "step-000002"


def test_another_model_is_refused(saved: tuple[Any, Any, Path], values: dict[str, Any]) -> None:
    _, _, folder = saved
    values["model"]["overrides"] = {"text_config": {"num_hidden_layers": 3}}
    other = jobs.make_engine(values)
    with pytest.raises(ValueError, match=r"master of model.decoder.layers.2.* covers 0 of"):
        other.restore(folder / "step-000001", checkpoint.read_state(folder / "step-000001"))
    other.close()
    with pytest.raises(ValueError, match="not a training checkpoint"):
        checkpoint.read_state(folder)


def test_frozen_weights_are_compared(values: dict[str, Any]) -> None:
    """One changed bit in the frozen tower is found and named."""
    engine = jobs.make_engine(values)
    before = checkpoint.fingerprint(engine.model)
    assert any("vision_tower" in name for name in before)
    checkpoint.check_fingerprint(json.loads(json.dumps(before)), engine.model)
    name, weight = next(item for item in engine.model.named_parameters() if "vision_tower" in item[0])
    with torch.no_grad():
        weight.view(-1)[0] += 1e-3
    with pytest.raises(ValueError, match=f"1 frozen tensors differ from the checkpoint's, first {name}"):
        checkpoint.check_fingerprint(before, engine.model)
    engine.close()
