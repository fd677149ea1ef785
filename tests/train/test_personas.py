"""Personas and attention routing through ``kosmos train``: packed rows, ZeRO, two ranks, exact resumption."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jobs
import pytest
from forks import launch
from test_entities import without_entities
from test_gradients import largest_error, plain_gradients

from kosmos_data import Document, Persona, Text, write_shards
from kosmos_data.turns import turn
from kosmos_train.fragments import create_state
from kosmos_train.runs import read_metrics

CITIES = ["Rome", "Bonn", "Oslo", "Lima"]
TALK = {"name": "causal", "loss": "supervised", "related": True}


def dialogue(key: str, draw: random.Random) -> Document:
    """Two turns, one about the persona, with the other one's persona before each; a few documents have no persona."""
    own, other = draw.sample(CITIES, 2)
    turns = [("where do you live?", f"in {own}"), ("what is two and two?", "four")]
    draw.shuffle(turns)
    who = [Persona({"city": own}), Text("\n", supervised=False)] if draw.random() < 0.8 else []
    segments: list[Any] = [*who]
    for place, pair in enumerate(turns):
        segments += [*([Persona({"city": other})] if who else []), *turn(*pair, last=place == 1)]
    return Document(key, segments)


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a run over dialogues and plain texts, one of two layers routed."""
    from kosmos_train.parts.tokenizer import TokenizerConfig, make_processor

    root, draw = tmp_path_factory.mktemp("talk"), random.Random(0)
    write_shards(root / "talk", [dialogue(f"d{number}", draw) for number in range(64)])
    texts = [" ".join(draw.choices(["the", "sea", "is", "far", "and", "cold"], k=12)) for _ in range(64)]
    write_shards(root / "text", [Document(f"t{number}", [Text(text)]) for number, text in enumerate(texts)])
    shards = [str(root / "talk"), str(root / "text")]
    make_processor(TokenizerConfig(shards=shards, vocab_size=120, num_image_tokens=1), root / "processor")
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = {
        "text_config": {
            **text, "vocab_size": 9, "max_position_embeddings": 64, "dropout": 0.1, "routing_layers": [1],
        },
        "vision_config": None,
        "entity_config": {"hidden_size": 16, "unknown_rate": 0.2},
    }  # fmt: skip
    (root / "model.json").write_text(json.dumps(model))
    return {
        "model": {"preset": str(root / "model.json")},
        "processor": str(root / "processor"),
        "steps": 6,
        "data": {
            "sources": [
                {"name": "text", "shards": shards[0], "objective": TALK},
                {"name": "pairs", "shards": shards[1], "weight": 0.2},
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


def errors(values: dict[str, Any]) -> dict[str, float]:
    """The largest error of a parameter's gradient by stage; the last rank's rows have no persona, and no label of α."""
    from kosmos_data import DataConfig, SourceConfig, build_loader
    from kosmos_train.build import build_model

    quiet = {"entity_config": {"unknown_rate": 0.0}, "text_config": {"dropout": 0.0}}
    values = values | {"model": values["model"] | {"overrides": quiet}, "optim": {"clip": 0.0}}
    source = SourceConfig("text", values["data"]["sources"][0]["shards"], objective=TALK)
    worst: dict[str, float] = {}
    for stage in (0, 1, 2, 3):
        engine = jobs.make_engine(values | {"engine": {"zero_stage": stage}})
        processor, rank = jobs.build_processor_of(engine), engine.world.rank
        config = DataConfig([source], row_tokens=64, rows_per_step=2, rows_per_micro_batch=2, lanes=2)
        loader = build_loader(config, processor)
        shares = [dict(next(loader).micro_batches[0]) for _ in range(2)]
        loader.close()
        shares[1] = without_entities(shares[1], processor.token_id("<entity_slot>"))
        assert {0, 1} <= set(shares[1].pop("persona_related").flatten().tolist())
        expected = plain_gradients(build_model(engine.config, processor), processor, shares)
        assert all(gradient.any() for name, gradient in expected.items() if "routing" in name)
        create_state(engine.deepspeed)
        assert engine.step(SimpleNamespace(micro_batches=[shares[rank]]), 1, 0.0, {}).skipped is None
        worst[f"ZeRO-{stage}"] = largest_error(engine, expected)
        engine.close()
    return worst


def first(values: dict[str, Any], runs: list[Any]) -> dict[str, float]:
    """Compare gradients, then train each of the runs."""
    found = errors(values)
    jobs.run_each(runs)
    return found


def test_two_ranks(talk: dict[str, Any], tmp_path: Path) -> None:
    """Gradients under ZeRO 0 to 3 are those of plain torch; under 1 and 2 losses fall, and resuming repeats them."""
    stages = (1, 2)
    runs = [(talk | {"engine": {"zero_stage": stage}}, str(tmp_path / f"run{stage}")) for stage in stages]
    for found in launch(tmp_path / "a", 2, first, talk, runs).results():
        assert len(found) == 4
        assert {stage: error for stage, error in found.items() if not error < 1e-5} == {}
    straight = [read_metrics(Path(run)) for _, run in runs]
    for _, run in runs:
        shutil.rmtree(Path(run) / "checkpoints" / "step-000006")
        (Path(run) / "checkpoints" / "latest").write_text("step-000003")
    launch(tmp_path / "b", 2, jobs.run_each, runs, True).results()
    for (_, run), before in zip(runs, straight, strict=True):
        assert before[-1]["loss"] < before[0]["loss"]
        assert before[0]["entities"] > 0
        again = read_metrics(Path(run))
        assert [(row["step"], row["loss"], row["order"]) for row in again] == [
            (row["step"], row["loss"], row["order"]) for row in before
        ]
    assert [row["loss"] for row in straight[0]] == pytest.approx([row["loss"] for row in straight[1]], rel=1e-5)
