"""kosmos tune: answers alone are learnt, each with its own end, so that they may have several lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kosmos import Conversation, settings
from kosmos.cli import main
from kosmos_data import Document, Text, write_shards
from kosmos_data.turns import turn
from kosmos_train.answers import learn_answers
from kosmos_train.config import TrainConfig

LINES = "the sea\n- cold rain\n- birds\n\nfar hills"


@pytest.fixture
def questions(values: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A short run on forty documents of two turns, the first answer of several lines."""
    documents = [
        Document(f"d{n}", [*turn("what is it", LINES, last=False), *turn("and the fish", "a boat", last=True)])
        for n in range(40)
    ]
    write_shards(tmp_path / "qa", documents)
    data = values["data"] | {"sources": [{"name": "qa", "shards": str(tmp_path / "qa")}], "row_tokens": 128}
    data |= {"rows_per_step": 4, "rows_per_micro_batch": 4}
    model = values["model"] | {"overrides": {"text_config": {"dropout": 0.0, "max_position_embeddings": 128}}}
    optim = {"lr": 1e-2, "warmup": 5}
    return values | {"data": data, "model": model, "optim": optim, "steps": 60, "checkpoint": {"every": 100}}


def test_the_demo_tunes_as_its_command_does() -> None:
    """``kosmos demo`` trains its question tuning as ``kosmos train`` does; its page says ``kosmos tune``."""
    path = Path(__file__).parents[2] / "train" / "configs" / "demo" / "tune.yaml"
    demo, command = settings.load(TrainConfig, path), settings.load(TrainConfig, path)
    learn_answers(command)
    assert command == demo
    assert demo.turn_end == "line"


@pytest.mark.slow
def test_answers_of_several_lines(questions: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    """What was learnt comes back with its line ends, whole, in chat; the checkpoint names the end."""
    settings.write_yaml(questions, tmp_path / "run.yaml")
    assert main(["tune", str(tmp_path / "run.yaml"), f"run={tmp_path / 'run'}"]) == 0
    assert "qa: answers only (40 of its first 40 documents mark questions)" in capsys.readouterr().err
    resolved = settings.load(TrainConfig, tmp_path / "run" / "config.yaml")
    assert resolved.turn_end == "eos"
    assert resolved.data.sources[0].objective == {"name": "causal", "loss": "supervised"}
    chat = Conversation(tmp_path / "run", max_new_tokens=60)
    assert chat.model.generation_config.eos_token_id == [2]
    assert chat.ask("what is it") == LINES
    assert chat.ask("and the fish") == "a boat"


def test_unmarked_data_is_refused(values: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    """Captions mark nothing: one line, unless the loss is asked for; train takes them as before."""
    path = tmp_path / "run.yaml"
    settings.write_yaml(values, path)
    assert main(["tune", str(path), "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert "source 'text': none of its first 160 documents has answers apart from what is asked" in error
    assert error.count("\n") == 1
    assert main(["train", str(path), "--dry-run"]) == 0
    for source in values["data"]["sources"]:
        source["objective"] = {"name": "causal", "loss": "all"}
    settings.write_yaml(values, path)
    assert main(["tune", str(path), "--dry-run"]) == 0
    empty = [Document(f"e{n}", [Text("Question: what Answer:", supervised=False), Text(" ")]) for n in range(8)]
    write_shards(tmp_path / "empty", empty)
    values["data"]["sources"] = [{"name": "empty", "shards": str(tmp_path / "empty")}]
    settings.write_yaml(values, path)
    capsys.readouterr()
    assert main(["tune", str(path), "--dry-run"]) == 2
    assert "source 'empty': none of its first 8 documents has answers" in capsys.readouterr().err
