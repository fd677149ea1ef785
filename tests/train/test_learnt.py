"""What ids and personas mean to a model that was trained: swapped, unknown, and with α by hand."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from forks import launch

from kosmos import Conversation
from kosmos_data import Document, Persona, Text, recipes, write_shards
from kosmos_data.turns import turn
from kosmos_eval.explanations import explain, report
from kosmos_eval.personas import judge

CITIES = ["Rome", "Bonn", "Oslo", "Lima", "Bern", "Riga"]
LIVE, SUM = "where do you live?", "what is two and two?"


def trained(root: Path, shards: Path, objective: dict[str, Any], steps: int, **model: Any) -> Path:
    """Train a small model on a corpus, with a vocabulary of its own; return the run."""
    from kosmos_train.parts.tokenizer import TokenizerConfig, make_processor

    make_processor(TokenizerConfig(shards=[str(shards)], vocab_size=130, num_image_tokens=1), root / "processor")
    text = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "max_position_embeddings": 64}
    text |= {"vocab_size": 9, **model.pop("text_config")}
    (root / "model.json").write_text(json.dumps({"text_config": text, "vision_config": None, **model}))
    data = {"row_tokens": 128, "rows_per_step": 4, "rows_per_micro_batch": 4}
    values = {
        "model": {"preset": str(root / "model.json")},
        "processor": str(root / "processor"),
        "steps": steps,
        "data": data | {"sources": [{"name": "all", "shards": str(shards), "objective": objective}]},
        "optim": {"lr": 1e-2, "warmup": 10, "schedule": "cosine"},
        "checkpoint": {"every": steps},
    }
    launch(root / "job", 1, jobs.run, values, str(root / "run")).results()
    return root / "run"


def test_swapped_ids_explain_something_else(tmp_path: Path) -> None:
    """Drawn reviews of pairs that were never seen: with the ids of others the words differ, and RMSE is above the
    mean's, below which it is with their own."""
    recipes.make("reviews", tmp_path / "reviews", ["users=24", "items=16", "features=2"])
    entities = {"hidden_size": 16, "rating": True, "unknown_rate": 0.02}
    text = {"num_hidden_layers": 1, "position_type": "rope"}
    train, test = (tmp_path / "reviews" / part for part in ("train", "test"))
    run = trained(tmp_path, train, {"name": "peter"}, 150, text_config=text, entity_config=entities)
    own = explain(run, test, max_new_tokens=12)
    right = report(own)
    assert right["exact"] > 0.6
    assert right["rmse"] < right["rmse_of_mean"]
    for swap in ("item", "both"):
        others = explain(run, test, swap=swap, max_new_tokens=12)  # type: ignore[arg-type]
        assert sum(a.text != b.text for a, b in zip(own, others, strict=True)) > len(own) / 2
        assert report(others)["rmse"] > right["rmse_of_mean"]
        assert report(others)["exact"] < right["exact"] / 2


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over drawn dialogues, one turn of which is about the persona; every layer is routed."""
    root, draw = tmp_path_factory.mktemp("talk"), random.Random(0)

    def dialogue(key: str) -> Document:
        own, other = draw.sample(CITIES, 2)
        turns = [(LIVE, f"in {own}"), draw.choice([(SUM, "four"), ("is the sea cold?", "yes, it is")])]
        draw.shuffle(turns)
        segments: list[Any] = [Persona({"city": own}), Text("\n", supervised=False)]
        for place, pair in enumerate(turns):
            segments += [Persona({"city": other}), *turn(*pair, last=place == 1)]
        return Document(key, segments)

    write_shards(root / "train", [dialogue(f"d{number}") for number in range(200)])
    write_shards(root / "test", [dialogue(f"t{number}") for number in range(40)])
    objective = {"name": "causal", "loss": "supervised", "related": True}
    text = {"num_hidden_layers": 2, "routing_layers": [0, 1]}
    entities = {"hidden_size": 16, "unknown_rate": 0.05}
    return trained(root, root / "train", objective, 150, text_config=text, entity_config=entities)


def test_alpha_is_read_from_the_context(talker: Path) -> None:
    """Near 1 where the question is about the persona, near 0 where it is not; the other one's persona is context."""
    chat = Conversation(talker, persona={"city": "Rome"})
    found = {}
    for question in (LIVE, SUM):
        inputs = chat._inputs([*chat.messages, {"role": "user", "content": chat.question(question)}])
        with torch.no_grad():
            found[question] = float(chat.model(**inputs).alpha[0, -1])
    assert found[LIVE] > 0.9
    assert found[SUM] < 0.1


def test_a_chat_is_for_the_persona_as_far_as_alpha_says(talker: Path) -> None:
    """Predicted or 1: the answer names the persona's city; 0: everybody answers the same."""
    said = {}
    for alpha in (None, 1.0, 0.0):
        for city in ("Rome", "Oslo"):
            chat = Conversation(talker, persona={"city": city}, alpha=alpha, max_new_tokens=8)
            said[alpha, city] = [chat.fork().ask(LIVE), chat.ask(SUM), chat.ask(LIVE)]
    assert said[None, "Rome"] == ["in Rome", "four", "in Rome"]
    assert said[None, "Oslo"] == ["in Oslo", "four", "in Oslo"]
    assert [said[1.0, city][0] for city in ("Rome", "Oslo")] == ["in Rome", "in Oslo"]
    assert said[0.0, "Rome"] == said[0.0, "Oslo"]


def test_personas_judged_with_alpha_by_hand(talker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Right against swapped personas: the interval of the difference excludes zero; with α = 0 there is none."""
    from kosmos.cli import main

    objective = "{name: causal, loss: supervised}"
    words = ["eval", "personas", str(talker), str(talker.parent / "test"), "--objective", objective]
    found = {}
    for alpha in ([], ["--alpha", "0"], ["--alpha", "1"]):
        assert main([*words, *alpha]) == 0
        found["".join(alpha)] = json.loads(capsys.readouterr().out)
    assert found[""]["wrong - right"]["low"] > 0.1
    assert 0.2 < found[""]["alpha"] < 0.8
    assert found["--alpha0"]["wrong - right"]["difference"] == pytest.approx(0, abs=1e-6)
    assert found["--alpha1"]["alpha"] == 1.0
    assert found[""]["right"]["nll"] < min(found[f"--alpha{one}"]["right"]["nll"] for one in (0, 1))
    judged = judge(talker, talker.parent / "test", {"name": "causal", "loss": "supervised"}, batch=7)
    assert judged["right"]["nll"] == pytest.approx(found[""]["right"]["nll"], abs=1e-5)
    assert main([*words, "--alpha", "2"]) == 2
    assert "alpha is 2.0: it is 0, the persona does not count, to 1" in capsys.readouterr().err


def test_a_command_takes_alpha(talker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``kosmos chat --persona FILE --alpha 0``; a model without attention routing has none."""
    from kosmos.cli import main

    file = tmp_path / "rome.json"
    file.write_text('{"city": "Rome"}')
    words = ["chat", str(talker), "--persona", str(file), "--ask", LIVE]
    assert main([*words, "--alpha", "1"]) == 0
    assert "in Rome" in capsys.readouterr().out
    assert main([*words, "--alpha", "-1"]) == 2
    assert "alpha is -1.0" in capsys.readouterr().err
