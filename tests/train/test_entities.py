"""Reviews through ``kosmos train``: packed rows, ZeRO, two ranks of which one has no entities, resumption."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jobs
import pytest
import torch
from forks import launch
from test_gradients import largest_error, plain_gradients

from kosmos_data import Corpus, recipes
from kosmos_train.fragments import create_state
from kosmos_train.runs import read_metrics


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a run over drawn reviews beside plain texts, with both losses at the places of the ids."""
    from kosmos_train.parts.tokenizer import TokenizerConfig, make_processor

    root = tmp_path_factory.mktemp("reviews")
    recipes.make("reviews", root / "reviews", ["users=12", "items=10"])
    train = str(root / "reviews" / "train")
    config = TokenizerConfig(shards=[train], vocab_size=120, image_size=16, num_image_tokens=1, max_length=64)
    processor = make_processor(config, root / "processor")
    assert processor.entity_kinds() == {"user": 12, "item": 10}
    assert len(Corpus(train)) == 96
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = {
        "text_config": {**text, "vocab_size": 9, "position_type": "rope", "max_position_embeddings": 64},
        "vision_config": None,
        "entity_config": {"hidden_size": 16, "rating": True, "unknown_rate": 0.2},
    }
    (root / "model.json").write_text(json.dumps(model))
    return {
        "model": {"preset": str(root / "model.json")},
        "processor": str(root / "processor"),
        "steps": 6,
        "data": {
            "sources": [
                {"name": "text", "shards": train, "weight": 0.5, "objective": {"name": "peter"}},
                {"name": "pairs", "shards": train, "weight": 0.5, "objective": {"name": "causal"}},
            ],
            "row_tokens": 64,
            "rows_per_step": 4,
            "rows_per_micro_batch": 2,
            "lanes": 4,
        },
        "optim": {"lr": 3e-3, "warmup": 2},
        "checkpoint": {"every": 3, "keep": 3},
        "log": {"every": 1},
    }


def micro_of(config: Any, processor: Any, objective: str, number: int) -> dict[str, torch.Tensor]:
    """A micro-batch of reviews as ``peter`` has them, or with their texts alone."""
    from kosmos_data import DataConfig, SourceConfig, build_loader

    source = SourceConfig("text", config.data.sources[0].shards, objective={"name": objective})
    loader = build_loader(
        DataConfig([source], row_tokens=64, rows_per_step=2, rows_per_micro_batch=2, lanes=2), processor
    )
    batches = [next(loader) for _ in range(number + 1)]
    loader.close()
    return dict(batches[number].micro_batches[0])


def without_entities(micro: dict[str, torch.Tensor], slot: int) -> dict[str, torch.Tensor]:
    """The same texts, and an ordinary token in the place of each entity."""
    kept = {name: value for name, value in micro.items() if not name.startswith("entity_")}
    return kept | {"input_ids": micro["input_ids"].masked_fill(micro["input_ids"] == slot, 5)}


def errors(values: dict[str, Any]) -> dict[str, float]:
    """The largest error of a parameter's gradient by stage; the last rank's rows have no entities."""
    from kosmos_train.build import build_model

    quiet = {"entity_config": {"unknown_rate": 0.0}, "text_config": {"dropout": 0.0}}
    values = values | {"model": values["model"] | {"overrides": quiet}, "optim": {"clip": 0.0}}
    worst = {}
    for stage in (0, 1, 2, 3):
        engine = jobs.make_engine(values | {"engine": {"zero_stage": stage}})
        processor, rank, size = jobs.build_processor_of(engine), engine.world.rank, engine.world.size
        slot = processor.token_id("<entity_slot>")
        shares = [micro_of(engine.config, processor, "peter", number) for number in range(size)]
        if size > 1:
            shares[-1] = without_entities(shares[-1], slot)
        expected = plain_gradients(build_model(engine.config, processor), processor, shares)
        create_state(engine.deepspeed)
        assert engine.step(SimpleNamespace(micro_batches=[shares[rank]]), 1, 0.0, {}).skipped is None
        worst[f"ZeRO-{stage}"] = largest_error(engine, expected)
        engine.close()
    return worst


@pytest.mark.parametrize("size", [1, 2])
def test_gradients_equal_plain_torch(reviews: dict[str, Any], tmp_path: Path, size: int) -> None:
    """All three losses, ZeRO 0-3; on two ranks one has no entity, and every gradient is still that of the whole."""
    for found in launch(tmp_path / "j", size, errors, reviews).results():
        assert len(found) == 4
        assert {stage: error for stage, error in found.items() if not error < 1e-5} == {}


@pytest.mark.parametrize(("size", "stage"), [(1, 1), (2, 2)])
def test_a_resumed_run_is_the_same(reviews: dict[str, Any], tmp_path: Path, size: int, stage: int) -> None:
    """Losses fall, and from the middle on a resumed run repeats them, dropout to the unknown and order included."""
    values, run = reviews | {"engine": {"zero_stage": stage}}, tmp_path / "run"
    launch(tmp_path / "a", size, jobs.run, values, str(run)).results()
    straight = read_metrics(run)
    assert straight[-1]["loss"] < straight[0]["loss"]
    assert straight[0]["entities"] > 0
    shutil.rmtree(run / "checkpoints" / "step-000006")
    (run / "checkpoints" / "latest").write_text("step-000003")
    launch(tmp_path / "b", size, jobs.run, values, str(run), True).results()
    again = read_metrics(run)
    assert [(row["step"], row["loss"], row["order"]) for row in again] == [
        (row["step"], row["loss"], row["order"]) for row in straight
    ]


def test_a_processor_without_entities(reviews: dict[str, Any], values: dict[str, Any]) -> None:
    """Tables for ids that the processor does not know are refused before anything is trained."""
    from kosmos import settings
    from kosmos_train import TrainConfig
    from kosmos_train.dry_run import plan

    config = settings.from_dict(TrainConfig, reviews)
    assert plan(config, 1).cost.parameters["entities"] > 0
    config.processor = values["processor"]
    with pytest.raises(ValueError, match=r"knows no entities of the kind 'user'|the model has tables for"):
        plan(config, 1)
