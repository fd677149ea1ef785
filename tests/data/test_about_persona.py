"""Which answers say something of the persona: the rule, and its way through objective, packing and batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kosmos import KosmosImageProcessor, KosmosProcessor, train_tokenizer
from kosmos.tokenization_kosmos import ENTITY_TOKENS
from kosmos_data import (
    Corpus,
    DataConfig,
    Document,
    Persona,
    SourceConfig,
    Text,
    build_loader,
    objectives,
    recipes,
    write_shards,
)
from kosmos_data.about_persona import about_persona, words
from kosmos_data.turns import turn

ROME = Persona({"city": "Rome", "likes": ["green tea", "the sea"]})


@pytest.fixture(scope="module")
def processor() -> KosmosProcessor:
    texts = ["Question: where do you live? Answer: in Rome by the sea, and you? hello there, what is two and two? four"]
    tokenizer = train_tokenizer(texts * 5, 120, extra_tokens=ENTITY_TOKENS)
    kinds = {"city": ["Rome"], "likes": ["green tea", "the sea"]}
    return KosmosProcessor(KosmosImageProcessor(image_size=32), tokenizer, 1, entities=kinds)


def dialogue(key: str, who: Persona | None = ROME) -> Document:
    turns = [*turn("where do you live?", "in Rome", last=False), *turn("what is two and two?", "four", last=True)]
    return Document(key, [*([who] if who else []), Text("\n", supervised=False), *turns])


def test_the_rule() -> None:
    """A common word is none; parts of an answer count together; another's persona, and no persona, say nothing."""
    assert words("I love the Green TEA, x") == {"green", "tea"}
    assert about_persona(dialogue("a")) == [-1, -1, -1, 1, -1, 0]
    assert about_persona(dialogue("a", None)) == [-1] * 5
    other = Persona({"city": "Bonn"})
    segments = [ROME, other, Text("so?", supervised=False), Text("near "), Text("the sea"), other]
    assert about_persona(Document("a", segments)) == [-1, -1, -1, 1, 1, -1]
    assert about_persona(Document("a", [ROME, Text("in Bonn")])) == [-1, 0]
    assert about_persona(Document("a", [])) == []


def test_every_output_of_an_answer_is_marked(processor: KosmosProcessor) -> None:
    """Also what ends it; nothing is said of what has no loss; the default says nothing at all."""
    make = objectives.get("causal", processor, loss="supervised", related=True)
    example = make(dialogue("a"), 0)
    assert example.related is not None
    parts: dict[int, str] = {}
    for label, weight, related in zip(example.label, example.weight, example.related, strict=True):
        assert (weight > 0) == (related >= 0)
        if weight:
            parts[related] = parts.get(related, "") + processor.tokenizer.decode([label])
    assert "Rome" in parts[1].replace(" ", "")
    assert parts[0].endswith("</s>")
    assert objectives.get("causal", processor, loss="supervised")(dialogue("a"), 0).related is None


@pytest.mark.parametrize("packing", ["best_fit", "cut", "sentences"])
def test_packed_rows_keep_it(processor: KosmosProcessor, tmp_path: Path, packing: str) -> None:
    """Documents with and without it share rows, also cut ones; each label keeps its own."""
    write_shards(tmp_path / "talk", [dialogue(f"d{number}") for number in range(8)])
    write_shards(tmp_path / "plain", [Document(f"t{number}", [Text("hello there by the sea")]) for number in range(8)])
    objective: dict[str, Any] = {"name": "causal", "loss": "supervised", "related": True}
    sources = [SourceConfig("talk", str(tmp_path / "talk"), objective=objective)]
    sources.append(SourceConfig("plain", str(tmp_path / "plain")))
    config = DataConfig(sources, row_tokens=48, rows_per_step=2, rows_per_micro_batch=2, lanes=2, packing=packing)
    loader = build_loader(config, processor)
    wanted = objectives.from_settings(objective, processor)(dialogue("d0"), 0)
    seen = set()
    for _ in range(6):
        (micro,) = next(loader).micro_batches
        assert micro["persona_related"].shape == micro["shift_labels"].shape
        known = micro["persona_related"] >= 0
        assert (micro["source_ids"][known] == 0).all()
        assert ((micro["shift_labels"] >= 0) & (micro["source_ids"] == 0)).equal(known)
        seen |= set(zip(micro["shift_labels"][known].tolist(), micro["persona_related"][known].tolist(), strict=True))
    loader.close()
    answered = wanted.weight > 0
    assert seen <= set(zip(wanted.label[answered].tolist(), wanted.related[answered].tolist(), strict=True))
    config = DataConfig(sources[1:], row_tokens=48, rows_per_step=2, rows_per_micro_batch=2, lanes=2, packing=packing)
    loader = build_loader(config, processor)
    assert "persona_related" not in next(loader).micro_batches[0]
    loader.close()


def test_the_drawn_dialogues(tmp_path: Path) -> None:
    """People are of one part only, towns and tastes of both; answers are the persona's; a seed draws the same."""
    for folder in ("a", "b"):
        recipes.make("dialogues", tmp_path / folder, ["dialogues=200", "about=0.6"])
    parts = {part: list(Corpus(tmp_path / "a" / part)) for part in ("train", "test")}
    assert [one.segments for one in parts["train"]] == [one.segments for one in Corpus(tmp_path / "b" / "train")]
    assert {part: len(found) for part, found in parts.items()} == {"train": 160, "test": 40}
    people = {part: {str(one.segments[0]) for one in found} for part, found in parts.items()}
    assert people["train"].isdisjoint(people["test"])
    seen = {text for one in parts["train"] for _, text in one.segments[0].pairs()}
    assert {text for one in parts["test"] for _, text in one.segments[0].pairs()} <= seen
    marks = [mark for one in parts["train"] for mark in about_persona(one) if mark >= 0]
    assert sum(marks) / len(marks) == pytest.approx(0.6, abs=0.08)
    for one in parts["test"]:
        own, other = one.segments[0], one.segments[2]
        assert own != other
        for asked, answer in zip(one.segments[3::3], one.segments[4::3], strict=True):
            assert (dict(own.pairs())["city"] in answer.text) == any(word in asked.text for word in ("live", "town"))
    for wrong in ("about=2", "held_out=0", "turns=0"):
        with pytest.raises(ValueError, match=wrong.partition("=")[0]):
            recipes.make("dialogues", tmp_path / "c", [wrong])
