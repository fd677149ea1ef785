"""Both encoders, several ranks: the gradient of every trainable parameter, and what a step leaves alone.

A micro-batch may have images, spans, both or neither, and another rank's has something else. Backward must still reach
all encoders in one order on every rank: ZeRO-2 adds up gradients, and ZeRO-3 gathers weights, in the order of arrival.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jobs
import pytest
import torch
from forks import launch

from kosmos.cost import part_of
from kosmos.modalities import normalize_pixels
from kosmos_train.fragments import MOMENTS, create_state, local_tensors

STAGES = (0, 1, 2, 3)
# (images?, spans?) of the first and of the second micro-batch or rank
PATTERNS = list(itertools.product(itertools.product((False, True), repeat=2), repeat=2))


def both_encoders(values: dict[str, Any], train_last_blocks: int, rows_per_step: int = 12) -> dict[str, Any]:
    """Settings with a ViT and a BERT of two blocks each, of which so many learn."""
    vision = {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    bert = {"model_type": "bert", "vocab_size": 1, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    bert |= {"num_attention_heads": 2, "max_position_embeddings": 16}
    overrides = {
        "text_config": {"dropout": 0.0, "num_hidden_layers": 1},
        "vision_config": {
            "model_config": {"embed_dim": 16, "vision_cfg": vision},
            "train_last_blocks": train_last_blocks,
        },
        "span_encoder_config": {"model_config": bert, "train_last_blocks": train_last_blocks},
    }
    data = values["data"] | {"rows_per_step": rows_per_step}
    model = values["model"] | {"overrides": overrides}
    return values | {"model": model, "data": data, "optim": {"clip": 0.0}, "guard": {"spike": 0.0}}


def micro_kinds(pattern: Any, rank: int, size: int, accumulation: int) -> list[tuple[int, bool, bool]]:
    """(seed, images?, spans?) of each micro-batch of one rank.

    Ranks take the pattern's entries in turns, a single rank one after the other.
    """
    return [(10 * rank + index, *pattern[(rank if size > 1 else index) % 2]) for index in range(accumulation)]


def plain_gradients(model: Any, processor: Any, micros: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The reference: no DeepSpeed, no empty inputs; a parameter that nothing reached has a gradient of zero."""
    total = sum(float(micro["loss_weight"].sum()) for micro in micros)
    model.zero_grad()
    for micro in micros:
        inputs = {name: value for name, value in micro.items() if name != "source_ids"}
        inputs = normalize_pixels(inputs, processor.image_processor)
        model(**inputs, num_items_in_batch=total).loss.backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def mean_gradients(parts: list[tuple[float, dict[str, torch.Tensor]]]) -> dict[str, torch.Tensor]:
    """The gradients of a step: the sum over its micro-batches by the sum of their weights."""
    weights, gradients = zip(*parts, strict=True)
    return {name: sum(each[name] for each in gradients) / sum(weights) for name in gradients[0]}


def summed_gradients(
    model: Any, processor: Any, micro: dict[str, torch.Tensor]
) -> tuple[float, dict[str, torch.Tensor]]:
    """Weight of one micro-batch, and the gradients of its summed loss; the 16 patterns need only a few of them."""
    model.zero_grad()
    inputs = {name: value for name, value in micro.items() if name != "source_ids"}
    inputs = normalize_pixels(inputs, processor.image_processor)
    model(**inputs, num_items_in_batch=1.0).loss.backward()
    return float(micro["loss_weight"].sum()), {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def gathered(engine: Any, kinds: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Master weight or moments of every trainable parameter by ``name|kind``, flat, put together from all ranks."""
    tensors = {key: value for key, value in local_tensors(engine.deepspeed).items() if key.split("|")[1] in kinds}
    local = {key: tensor.numpy() for key, tensor in tensors.items()}  # pickled in a tenth of the time
    pieces: dict[str, dict[int, torch.Tensor]] = {}
    for key, values in (item for found in engine.world.gather(local) for item in found.items()):
        name, start = key.rsplit("|", 1)
        pieces.setdefault(name, {})[int(start)] = torch.from_numpy(values)
    return {name: torch.cat([found[start] for start in sorted(found)]) for name, found in pieces.items()}


def largest_error(engine: Any, expected: dict[str, torch.Tensor]) -> float:
    """The largest error of a parameter's gradient as a share of its norm, after one step from zero at rate 0.

    Adam's first moment is then (1 - beta1) times the gradient that it was given.
    """
    found, kept = gathered(engine, ("exp_avg",)), 1 - engine.config.optim.betas[0]
    assert len(found) == len(expected)
    norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    shares = (
        (found[f"{name}|exp_avg"] / kept - gradient.flatten()).norm() / max(gradient.norm(), 1e-3 * norm)
        for name, gradient in expected.items()
    )
    return max(map(float, shares))


def gradient_errors(values: dict[str, Any], train_last_blocks: int, accumulations: list[int]) -> dict[str, float]:
    """The largest error of a parameter's gradient by stage, accumulation and pattern, as a share of its norm."""
    from kosmos_train.build import build_model

    errors: dict[str, float] = {}
    known: dict[Any, tuple[float, dict[str, torch.Tensor]]] = {}
    for stage in STAGES:
        engine = jobs.make_engine(both_encoders(values, train_last_blocks) | {"engine": {"zero_stage": stage}})
        rank, size, processor = engine.world.rank, engine.world.size, jobs.build_processor_of(engine)
        model = build_model(engine.config, processor)
        for accumulation, pattern in itertools.product(accumulations, PATTERNS):
            mine = micro_kinds(pattern, rank, size, accumulation)
            all_kinds = [kind for other in range(size) for kind in micro_kinds(pattern, other, size, accumulation)]
            for seed, image, span in set(all_kinds) - known.keys():
                micro = jobs.micro_batch(seed, processor, image=image, span=span)
                known[seed, image, span] = summed_gradients(model, processor, micro)
            expected = mean_gradients([known[kind] for kind in all_kinds])
            create_state(engine.deepspeed)
            # at rate 0 the weights stay, so that each pattern meets the same model
            micros = [jobs.micro_batch(seed, processor, image=image, span=span) for seed, image, span in mine]
            result = engine.step(SimpleNamespace(micro_batches=micros), 1, 0.0, {})
            assert result.skipped is None, result.skipped
            norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
            worst = max(abs(result.grad_norm / float(norm) - 1), largest_error(engine, expected))
            errors[f"ZeRO-{stage}, {accumulation} micro-batches, {pattern}"] = worst
        engine.close()
    return errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "train_last_blocks", "accumulations"),
    [(1, 0, [2]), (1, 1, [2]), (2, 0, [1]), (2, 1, [1, 2]), (3, 1, [1])],
)
def test_gradients_equal_plain_torch(
    values: dict[str, Any], tmp_path: Path, size: int, train_last_blocks: int, accumulations: list[int]
) -> None:
    """All 16 patterns of who has images and spans, ZeRO 0-3, one and two micro-batches: every gradient to 1e-5."""
    job = launch(tmp_path / "j", size, gradient_errors, values, train_last_blocks, accumulations)
    for errors in job.results():
        assert len(errors) == len(STAGES) * len(accumulations) * len(PATTERNS)
        assert {case: error for case, error in errors.items() if not error < 1e-5} == {}


def changed_parts(values: dict[str, Any], engines: list[dict[str, Any]]) -> list[list[list[str]]]:
    """By engine, the parts of which each step changed a weight or moment: of both, of text only, of images, of spans.

    Of two ranks only the second ever has images or spans.
    """
    found = []
    for variant in engines:
        settings = both_encoders(values, 1, rows_per_step=4) | {"engine": variant, "optim": {"weight_decay": 0.1}}
        engine = jobs.make_engine(settings)
        processor, last = jobs.build_processor_of(engine), engine.world.rank == engine.world.size - 1
        steps, before = [], gathered(engine, ("master", *MOMENTS)) | engine.full_weights(True)
        for number, (image, span) in enumerate([(True, True), (False, False), (True, False), (False, True)], start=1):
            micros = [jobs.micro_batch(10 * number + i, processor, image and last, span=span and last) for i in (0, 1)]
            result = engine.step(SimpleNamespace(micro_batches=micros), number, 1e-2, {})
            assert result.skipped is None
            after = gathered(engine, ("master", *MOMENTS)) | engine.full_weights(True)
            steps.append(sorted({part_of(name) for name in before if not torch.equal(before[name], after[name])}))
            before = after
        engine.close()
        found.append(steps)
    return found


@pytest.mark.parametrize("size", [1, 2])
def test_what_no_sample_reached_stays(values: dict[str, Any], tmp_path: Path, size: int) -> None:
    """A step without images (spans) on any rank leaves that encoder's and connector's weights and moments bit for bit,
    although weight decay is on and earlier steps have filled the moments; the rest moves."""
    engines = [{"zero_stage": stage} for stage in STAGES]
    engines += [{"zero_stage": 2, "precision": "bf16"}, {"zero_stage": 3, "offload_optimizer": True}]
    images, spans = ["connector", "vision"], ["spans"]
    expected = [sorted(["decoder", "embeddings", *more]) for more in (images + spans, [], images, spans)]
    for found in launch(tmp_path / "j", size, changed_parts, values, engines).results():
        assert found == [expected] * len(engines)
