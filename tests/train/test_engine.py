"""The engine gives the same numbers under every ZeRO stage, process count and split of the batch."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jobs
import pytest
import torch
from forks import launch

STEPS = 10
FP32 = [{"zero_stage": stage, "precision": "fp32"} for stage in (0, 1, 2, 3)]
BF16 = [{"zero_stage": stage, "precision": "bf16"} for stage in (1, 2, 3)]


def no_dropout(values: dict[str, Any]) -> dict[str, Any]:
    values["model"]["overrides"] = {"text_config": {"dropout": 0.0}}
    values["data"]["rows_per_step"] = 8
    return values


def plain_losses(values: dict[str, Any]) -> list[list[float]]:
    """The reference: no DeepSpeed, no accumulation, one big padded batch, one textbook AdamW step."""
    from kosmos import settings
    from kosmos_train.build import build_model, build_processor
    from kosmos_train.config import TrainConfig
    from kosmos_train.optim import parameter_groups

    config = settings.from_dict(TrainConfig, values)
    processor = build_processor(config)
    model = build_model(config, processor).train()
    optim = config.optim
    adam = torch.optim.AdamW(parameter_groups(model, optim), betas=optim.betas, eps=optim.eps)
    losses = []
    for step in range(1, STEPS + 1):
        parts = jobs.step_batch(step, processor, 0, 1).micro_batches
        batch = {name: torch.cat([part[name] for part in parts]) for name in parts[0] if name != "pixel_values"}
        pixels = torch.cat([part["pixel_values"] for part in parts if "pixel_values" in part])
        batch["pixel_values"] = processor.image_processor.normalize(pixels)
        batch.pop("source_ids")
        loss = model(**batch).loss  # its own default normaliser: the sum of weights
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip)
        for group in adam.param_groups:
            group["lr"] = jobs.rate_of(step)
        adam.step()
        adam.zero_grad()
        losses.append([loss.item(), norm.item()])
    return losses


@pytest.mark.slow
def test_stages_and_processes_equal_one_big_batch(values: dict[str, Any], tmp_path: Path) -> None:
    """ZeRO 0/1/2/3 on 1 and 2 processes, text-only micro-batches and a text-only rank: equal to 1e-5 in fp32."""
    values = no_dropout(values)
    jobs_running = [
        launch(tmp_path / str(size), size, jobs.engine_losses, values, FP32 + BF16, STEPS) for size in (1, 2)
    ]
    expected = torch.tensor(plain_losses(values))
    for job in jobs_running:
        for rank_losses in job.results():
            losses = torch.tensor(rank_losses)
            torch.testing.assert_close(losses[:4], expected.expand(4, -1, -1), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(losses[4:, :, 0], expected[:, 0].expand(3, -1), rtol=1e-2, atol=0)


def losses_with(values: dict[str, Any], engine: dict[str, Any], model: dict[str, Any], steps: int = 4) -> torch.Tensor:
    changed = {**values, "model": values["model"] | model}
    return torch.tensor(jobs.engine_losses(changed, [engine], steps)[0])


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offload_changes_no_number(values: dict[str, Any], stage: int) -> None:
    """Optimiser state in CPU memory: the same losses and norms."""
    plain = losses_with(values, {"zero_stage": stage}, {})
    offloaded = losses_with(values, {"zero_stage": stage, "offload_optimizer": True}, {})
    torch.testing.assert_close(offloaded, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("stage", [1, 3])
def test_recomputation_changes_no_number(values: dict[str, Any], stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Activation checkpointing, with dropout on: blocks run twice, the same losses and norms."""
    plain = losses_with(values, {"zero_stage": stage}, {})
    from kosmos.decoder import KosmosFeedForward

    runs, original = [], KosmosFeedForward.forward
    monkeypatch.setattr(KosmosFeedForward, "forward", lambda *a, **k: runs.append(1) or original(*a, **k))
    again = losses_with(values, {"zero_stage": stage}, {"activation_checkpointing": True})
    assert len(runs) == 2 * 4 * 4 * 2  # twice, steps, micro-batches, blocks
    torch.testing.assert_close(again, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs g++")
def test_compiled_code_computes_the_same(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code that inductor has really generated, for one block and rows of one shape: the same losses and norms."""
    import torch._inductor.config
    from torch._dynamo.utils import counters

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    # Neither programs that try each vector width of the processor, nor compilers in processes of their own.
    cheap = {"cpp.vec_isa_ok": True, "compile_threads": 1}
    values["model"]["overrides"] = {"text_config": {"dropout": 0.0, "num_hidden_layers": 1}}

    def losses(model: dict[str, Any]) -> list[list[float]]:
        engine = jobs.make_engine(values | {"model": values["model"] | model, "engine": {"zero_stage": 2}})
        processor, found = jobs.build_processor_of(engine), []
        for step in (1, 2, 3):
            micro = jobs.micro_batch(step, processor, image=True)
            del micro["document_ids"]  # on a CPU each new layout of documents is a graph of its own
            result = engine.step(SimpleNamespace(micro_batches=[micro]), step, jobs.rate_of(step), {})
            found.append([result.loss, result.grad_norm])
        engine.close()
        return found

    with torch._inductor.config.patch(cheap):
        compiled = torch.tensor(losses({"compile": True}))
    torch.testing.assert_close(compiled, torch.tensor(losses({})), rtol=1e-4, atol=1e-4)
    assert counters["stats"]["unique_graphs"] >= 1
    assert list(tmp_path.rglob("*.so")), "nothing was compiled"


def test_compiled_blocks_train_alike(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed rows through block-level torch.compile, only traced (code for each takes minutes): the same losses."""
    compiled, original = [], torch.nn.Module.compile

    def trace(module: torch.nn.Module, **options: Any) -> None:
        compiled.append(module)
        original(module, backend="eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", trace)
    values = no_dropout(values)
    plain = losses_with(values, {"zero_stage": 2}, {}, steps=2)
    again = losses_with(values, {"zero_stage": 2}, {"compile": True}, steps=2)
    assert len(compiled) == 4  # two blocks of the decoder, one of the tower, the connector
    torch.testing.assert_close(again, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_gradient_norms_by_part(values: dict[str, Any], stage: int) -> None:
    """Against autograd on the bare model; frozen parts have none, and together they are the whole norm."""
    from kosmos_train.build import build_model

    values = no_dropout(values) | {"engine": {"zero_stage": stage}}
    values["optim"] = {"clip": 0.1}
    engine = jobs.make_engine(values)
    processor = jobs.build_processor_of(engine)
    batch = jobs.step_batch(1, processor, 0, 1)
    result = engine.step(batch, 1, 1e-3, {})
    engine.close()
    assert set(result.part_norms) == {"decoder", "embeddings", "connector"}
    assert sum(norm**2 for norm in result.part_norms.values()) ** 0.5 == pytest.approx(result.grad_norm, rel=1e-5)
    model = build_model(engine.config, processor)
    total = sum(float(micro["loss_weight"].sum()) for micro in batch.micro_batches)
    for micro in batch.micro_batches:
        inputs = {name: value for name, value in micro.items() if name != "source_ids"}
        if "pixel_values" in inputs:
            inputs["pixel_values"] = processor.image_processor.normalize(inputs["pixel_values"])
        model(**inputs, num_items_in_batch=total).loss.backward()
    connector = [parameter.grad.norm() for parameter in model.model.connector.parameters()]
    assert result.part_norms["connector"] == pytest.approx(float(torch.stack(connector).norm()), rel=1e-4)


def test_gradients_are_those_of_the_weighted_mean(values: dict[str, Any]) -> None:
    """An independent check of the scale: doubling every weight changes nothing, doubling one token's does."""
    engine = jobs.make_engine(no_dropout(values))
    processor = jobs.build_processor_of(engine)
    batch = jobs.step_batch(1, processor, 0, 1)
    before = engine.evaluate([batch], engine.sources)["loss"]
    for micro in batch.micro_batches:
        micro["loss_weight"] = micro["loss_weight"] * 2
    assert engine.evaluate([batch], engine.sources)["loss"] == pytest.approx(before, rel=1e-6)
    weight = batch.micro_batches[0]["loss_weight"]
    weight[tuple(weight.nonzero()[3])] *= 50
    assert engine.evaluate([batch], engine.sources)["loss"] != pytest.approx(before, rel=1e-6)
    engine.close()


def silence(batch: Any, share: range) -> None:
    """No token of these micro-batches is supervised."""
    for index in share:
        batch.micro_batches[index]["loss_weight"].zero_()
        batch.micro_batches[index]["shift_labels"].fill_(-100)


def half_silent(values: dict[str, Any], stages: list[int]) -> list[Any]:
    """Losses when the second half of each step is not supervised (of two ranks: all of rank 1), then what happens when
    nothing is."""
    found: list[Any] = []
    for stage in stages:
        engine = jobs.make_engine({**values, "engine": {"zero_stage": stage}})
        rank, size, processor = engine.world.rank, engine.world.size, jobs.build_processor_of(engine)
        for step in (1, 2):
            batch = jobs.step_batch(step, processor, rank, size)
            silence(batch, range(2) if size == 2 and rank == 1 else range(2, 4) if size == 1 else range(0))
            result = engine.step(batch, step, jobs.rate_of(step), {})
            found += [result.loss, result.grad_norm]
        silence(batch, range(4 // size))
        try:
            engine.step(batch, 3, 1e-3, {})
        except ValueError as error:
            found.append(str(error).split(" on ")[0])
        engine.close()
    return found


def test_a_step_without_supervised_tokens_is_an_error(values: dict[str, Any], tmp_path: Path) -> None:
    """The count of all ranks decides: one rank without is an ordinary step, none on any rank is an error on each."""
    values, stages = no_dropout(values), [1, 3]
    expected = half_silent(values, stages)
    assert expected[4].startswith("step 3: no supervised token in ")
    for found in launch(tmp_path / "j", 2, half_silent, values, stages).results():
        assert [value for value in found if isinstance(value, str)] == [expected[4], expected[9]]
        numbers = [value for value in found if not isinstance(value, str)]
        assert numbers == pytest.approx([value for value in expected if not isinstance(value, str)], abs=1e-5)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_bad_loss_changes_nothing(values: dict[str, Any], stage: int) -> None:
    """NaN in one micro-batch: the update is skipped, weights and moments stay bit for bit, the next step works."""
    values["engine"] = {"zero_stage": stage}
    engine = jobs.make_engine(values)
    processor = jobs.build_processor_of(engine)
    engine.step(jobs.step_batch(1, processor, 0, 1), 1, 1e-3, {})
    before = snapshot(engine)
    bad = jobs.step_batch(2, processor, 0, 1)
    bad.micro_batches[1]["loss_weight"][0, 6] = float("nan")
    result = engine.step(bad, 2, 1e-3, {})
    assert "nan" in str(result.skipped)
    assert all(torch.equal(before[name], tensor) for name, tensor in snapshot(engine).items())
    result = engine.step(jobs.step_batch(3, processor, 0, 1), 3, 1e-3, {})
    assert result.skipped is None
    assert not all(torch.equal(before[name], tensor) for name, tensor in snapshot(engine).items())
    engine.close()


@pytest.mark.parametrize("stage", [0, 2])
def test_a_spike_is_skipped(values: dict[str, Any], stage: int) -> None:
    """A gradient far above the recent median is left out, whatever the loss says."""
    values |= {"engine": {"zero_stage": stage}, "guard": {"spike": 3.0}}
    engine = jobs.make_engine(values)
    processor = jobs.build_processor_of(engine)
    for _ in range(16):
        engine.guard.record(10.0, 1e-3, None)
    before = snapshot(engine)
    result = engine.step(jobs.step_batch(1, processor, 0, 1), 1, 1e-3, {})
    assert "gradient norm" in str(result.skipped)
    assert all(torch.equal(before[name], tensor) for name, tensor in snapshot(engine).items())
    engine.close()


def test_frozen_parts_are_not_optimised(values: dict[str, Any]) -> None:
    """Frozen weights have no optimiser state and never change; a pattern that matches nothing is refused."""
    values["model"]["freeze"] = ["model.decoder.layers.0.*"]
    engine = jobs.make_engine(values)
    optimised = sum(flat.numel() for group in engine.optimizer.param_groups for flat in group["params"])
    trainable = sum(parameter.numel() for parameter in engine.model.parameters() if parameter.requires_grad)
    assert trainable <= optimised < trainable + 16  # DeepSpeed pads its partitions
    frozen = {name: value.clone() for name, value in engine.model.named_parameters() if not value.requires_grad}
    assert any("layers.0" in name for name in frozen)
    assert any("vision_tower" in name for name in frozen)
    engine.step(jobs.step_batch(1, jobs.build_processor_of(engine), 0, 1), 1, 1e-2, {})
    assert all(torch.equal(value, engine.model.get_parameter(name)) for name, value in frozen.items())
    engine.close()
    values["model"]["freeze"] = ["decoder.*"]
    with pytest.raises(ValueError, match="matches no parameter"):
        jobs.make_engine(values)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_part_learns_at_its_own_rate(values: dict[str, Any], stage: int) -> None:
    """Adam's first step moves a weight by its rate where the gradient is clear: each part by its share of it."""
    from kosmos.cost import part_of

    values = no_dropout(values) | {"optim": {"part_lr": {"connector": 0.1, "embeddings": 0.0}, "weight_decay": 0.0}}
    engine = jobs.make_engine(values | {"engine": {"zero_stage": stage}})
    before = engine.full_weights(True)
    engine.step(jobs.step_batch(1, jobs.build_processor_of(engine), 0, 1), 1, 1e-2, {})
    moved: dict[str, float] = {}
    for name, after in engine.full_weights(True).items():
        part = part_of(name)
        moved[part] = max(moved.get(part, 0.0), float((after - before[name]).abs().max()))
    engine.close()
    assert moved.pop("vision") == 0  # frozen
    assert moved == pytest.approx({"decoder": 1e-2, "connector": 1e-3, "embeddings": 0.0}, rel=1e-2)


def test_a_rate_of_no_part_is_refused(values: dict[str, Any]) -> None:
    """The message has the parts of this model: one without audio cannot have a rate for it."""
    for rates in ({"visoin": 0.1}, {"vision": -1.0}, {"audio": 0.1}, {"spans": 0.1}):
        with pytest.raises(ValueError, match="this model's parts are decoder, embeddings, vision, connector,"):
            jobs.make_engine(values | {"optim": {"part_lr": rates}})


def snapshot(engine: Any) -> dict[str, torch.Tensor]:
    """Copies of every master weight and moment."""
    from kosmos_train.fragments import local_tensors

    return local_tensors(engine.deepspeed)
