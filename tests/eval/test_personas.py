"""Personas judged: likelihoods equal plain ones, the classifier's counts by hand, the command over a small model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from random import Random

import pytest
import torch

from kosmos import KosmosConfig, KosmosForConditionalGeneration, KosmosImageProcessor, KosmosProcessor, train_tokenizer
from kosmos.cli import main
from kosmos.modalities import stack_inputs
from kosmos.tokenization_kosmos import ENTITY_TOKENS
from kosmos_data import Corpus, Document, Entity, Persona, Text, objectives, write_shards
from kosmos_data.entity_names import read_kinds
from kosmos_eval import corpus_items
from kosmos_eval.persona_words import WordClassifier, write
from kosmos_eval.personas import judge, others, unknown
from kosmos_eval.rating.texts import read_pairs

SAID = {"Ada": "tea and maths are good", "Bo": "the sea is wide", "Cy": "we go to the sea"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What three people say, and a checkpoint of random weights with the processor that fits it."""
    root = tmp_path_factory.mktemp("personas")
    documents = [
        Document(f"{name}-{number}", [Persona({"name": name}), Text(f"{text} {'now ' * number}")], {"speech": name})
        for name, text in SAID.items()
        for number in range(3)
    ]
    write_shards(root / "said", documents)
    tokenizer = train_tokenizer([*SAID.values()] * 5, 120, extra_tokens=ENTITY_TOKENS)
    processor = KosmosProcessor(KosmosImageProcessor(image_size=32), tokenizer, 1, entities=read_kinds([root / "said"]))
    text = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    torch.manual_seed(0)
    config = KosmosConfig(
        text_config={**text, "num_attention_heads": 2, "position_type": "rope", "max_position_embeddings": 64},
        vision_config=None,
        entity_config={"kinds": processor.entity_kinds(), "hidden_size": 16},
        entity_token_id=processor.token_id("<entity_slot>"),
    )
    processor.save_pretrained(root / "model")
    KosmosForConditionalGeneration(config).save_pretrained(root / "model")
    return root


def test_likelihoods_are_plain_ones(world: Path) -> None:
    """Batches of any size give what each document alone does, token by token."""
    model = KosmosForConditionalGeneration.from_pretrained(world / "model").eval()
    processor = KosmosProcessor.from_pretrained(world / "model")
    nll, count = 0.0, 0
    for document in Corpus(world / "said"):
        example = objectives.get("causal", processor)(document, 0)
        ids = torch.from_numpy(example.token)[None].long()
        with torch.no_grad():
            logits = model(input_ids=ids, **stack_inputs(example.placed)).logits[0].log_softmax(-1)
        for at in (example.weight > 0).nonzero()[0]:
            nll, count = nll - float(logits[at, int(example.label[at])]), count + 1
    for batch in (2, 32):
        report = judge(world / "model", world / "said", batch=batch)
        assert report["right"]["nll"] == pytest.approx(nll / count, abs=1e-5)
    assert (report["documents"], report["groups"]) == (9, 3)
    assert report["wrong"]["nll"] != report["right"]["nll"] != report["unknown"]["nll"]
    difference = report["wrong - right"]
    assert difference["difference"] == pytest.approx(report["wrong"]["nll"] - report["right"]["nll"])
    assert difference["low"] <= difference["difference"] <= difference["high"]


def test_wrong_personas_are_other_ones(world: Path) -> None:
    """Everybody gets the persona of somebody else, or of nobody; the text stays. One persona for all is refused."""
    documents = list(Corpus(world / "said"))
    for given in (others(documents, Random(0)), unknown(documents)):
        for old, new in zip(documents, given, strict=True):
            assert old.segments[0] != new.segments[0]
            assert old.segments[1:] == new.segments[1:]
    with pytest.raises(ValueError, match="every persona has name: Ada, so there is no wrong one"):
        others(documents[:3], Random(0))
    with pytest.raises(ValueError, match="a has no persona"):
        others([Document("a", [Text("x")])], Random(0))


def test_the_classifier_by_hand() -> None:
    """Counts with smoothing, of known words only."""
    classifier = WordClassifier([("Ada", "Tea, tea"), ("Ada", "sea"), ("Bo", "sea")], smoothing=1.0)
    assert classifier.score("tea? SEA!", "Ada") == pytest.approx(math.log(3 / 5) + math.log(2 / 5))
    assert classifier.score("tea unheard", "Bo") == pytest.approx(math.log(1 / 3))
    assert "Ada" in classifier
    assert "Cy" not in classifier


def test_writing_is_by_persona(world: Path) -> None:
    """As many texts as documents, drawn alike from the same seed."""
    model = KosmosForConditionalGeneration.from_pretrained(world / "model").eval()
    processor = KosmosProcessor.from_pretrained(world / "model")
    documents = list(Corpus(world / "said"))[:3]
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        drawn.append(list(write(model, processor, documents, 4, batch=2)))
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 3


def test_the_command(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON with all figures; what cannot be judged is one clear line."""
    words = ["eval", "personas", str(world / "model"), str(world / "said")]
    assert main([*words, "--limit", "8", "--train", str(world / "said"), "--write", "4"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["documents"] == 8
    assert report["written"]["texts"] == 4
    assert report["written"]["classes"] == 3
    assert report["written"]["real"]["share"] == 1.0
    assert {"share", "low", "high"} == set(report["written"]["right"]) == set(report["written"]["wrong"])
    write_shards(world / "few", [Document("a", [Persona({"name": "Ada"}), Text("x")])])
    write_shards(world / "reviews", [Document("a", [Entity({"name": "Ada"}), Text("x")])])
    write_shards(world / "cities", [Document(c, [Persona({"city": c}), Text("x")]) for c in ("Rome", "Bonn")])
    for corpus, options, message in (
        ("said", ["--limit", "0"], "at least one document is judged"),
        ("few", [], "there is no wrong one"),
        ("reviews", [], "a has no persona"),
        ("cities", [], "knows no entities of the kind 'city'"),
        ("said", ["--train", str(world / "few")], "have no persona 'Bo'"),
    ):
        assert main([*words[:3], str(world / corpus), *options]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert len(said.strip().splitlines()) == 1


def test_what_was_written_can_be_judged_by_people(world: Path, tmp_path: Path) -> None:
    """The texts for the right and for the wrong persona, under the right one, matched by document."""
    judge(world / "model", world / "said", train=world / "said", write=4, max_new_tokens=8, out=tmp_path)
    found = read_pairs(tmp_path / "right.jsonl", tmp_path / "wrong.jsonl")
    assert (len(found.pairs), found.remarks) == (4, [])
    assert {pair.prompt for pair in found.pairs} <= {f"name: {name}" for name in SAID}
    assert all(pair.prompt == f"name: {pair.key.split('-')[0]}" for pair in found.pairs)
    assert any(not pair.is_same for pair in found.pairs)
    real = {pair.key: pair.texts[1] for pair in read_pairs(tmp_path / "right.jsonl", tmp_path / "real.jsonl").pairs}
    assert all(text.startswith(SAID[key.split("-")[0]]) for key, text in real.items())
    with pytest.raises(ValueError, match="nothing is written without the texts of --train"):
        judge(world / "model", world / "said", out=tmp_path)


def test_a_task_does_not_lose_a_persona(world: Path) -> None:
    """A task reads turns of texts and images; a persona in between is refused, not lost."""
    with pytest.raises(ValueError, match="has the persona name: Ada, which a task cannot ask about"):
        corpus_items.read(world / "said")
