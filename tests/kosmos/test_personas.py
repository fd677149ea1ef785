"""A chat for somebody in particular: what the model reads is what a document of the training has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import pipeline

from kosmos import Conversation, KosmosForConditionalGeneration, KosmosImageProcessor, KosmosProcessor, train_tokenizer
from kosmos.chat import main
from kosmos.segments import Persona, Text
from kosmos.tokenization_kosmos import ENTITY_TOKENS
from kosmos_data import Document, objectives
from kosmos_data.turns import turn

ADA = {"name": "Ada", "likes": ["tea", "maths"]}
KINDS = {"name": ["Bo", "Ada"], "likes": ["tea", "maths"]}


def make_checkpoint(config_factory: Any, folder: Path, **text: Any) -> Path:
    """A model of random weights that reads personas by ids, with its processor."""
    texts = ["Question: what is the best thing? Answer: the red tea is a good thing and not dear"]
    tokenizer = train_tokenizer(texts * 5, 120, extra_tokens=ENTITY_TOKENS)
    processor = KosmosProcessor(KosmosImageProcessor(image_size=32), tokenizer, 8, max_length=128, entities=KINDS)
    torch.manual_seed(0)
    config = config_factory(
        "rope",
        images=False,
        text={"vocab_size": len(tokenizer), **text},
        entity_config={"kinds": processor.entity_kinds(), "hidden_size": 16},
        entity_token_id=processor.token_id("<entity_slot>"),
    )
    config.image_token_id = processor.image_slot_id
    processor.save_pretrained(folder)
    KosmosForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(config_factory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(config_factory, tmp_path_factory.mktemp("persona"))


def test_a_chat_reads_what_training_has(checkpoint: Path) -> None:
    """The prompt of a chat with a persona is the beginning of the document that ``data import`` makes of a dialogue."""
    chat = Conversation(checkpoint, persona=ADA, max_new_tokens=2)
    processor = chat.processor
    segments = [Persona(ADA), Text("\n", supervised=False), *turn("what is the thing?", "tea", last=True)]
    example = objectives.get("causal", processor)(Document("a", segments), 0)
    asked = {"role": "user", "content": chat.question("what is the thing?")}
    inputs = chat._inputs([*chat.messages, asked])
    length = inputs["input_ids"].shape[1]
    assert inputs["input_ids"][0].tolist() == example.token[:length].tolist()
    assert inputs["entity_ids"].tolist() == [int(one.payload) for one in example.placed] == [4, 0, 1]
    chat.ask("what is the thing?")
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant"]
    assert "name Ada" in chat._repr_html_()
    assert json.loads(json.dumps(chat.export()))["messages"][0]["content"][0]["type"] == "entity"
    for number in range(12):
        chat.ask(f"what is the thing {number}?", forget=True)
    assert chat.forgotten > 0
    assert chat.messages[0]["role"] == "system"  # who answers is not forgotten
    chat.reset()
    assert chat.messages[0]["role"] == "system"


@pytest.mark.parametrize("turn_end", ["line", "eos"])
def test_earlier_answers_are_written_as_in_training(config_factory, tmp_path: Path, turn_end: str) -> None:
    """A chat's routes are those of the dialogue that is trained: what was answered before was written, not read."""
    chat = Conversation(make_checkpoint(config_factory, tmp_path, routing_layers=[1]), persona=ADA, max_new_tokens=3)
    chat.processor.end_turns(turn_end)
    said = [("what is the thing?", "tea"), ("is the tea red?", "not red")]
    turns = [part for place, pair in enumerate(said) for part in turn(*pair, last=place == 1)]
    document = Document("a", [Persona(ADA), Text("\n", supervised=False), *turns])
    example = objectives.get("causal", chat.processor, loss="supervised")(document, 0)
    chat.messages += [{"role": "user", "content": chat.question(said[0][0])}]
    chat.messages += [{"role": "assistant", "content": [{"type": "text", "text": said[0][1]}]}]
    inputs = chat._inputs([*chat.messages, {"role": "user", "content": chat.question(said[1][0])}])
    length = inputs["input_ids"].shape[1]
    assert inputs["input_ids"][0].tolist() == example.token[:length].tolist()
    assert inputs["writing"][0].tolist() == (example.weight[:length] > 0).tolist()
    seen = []
    chat.model.model.register_forward_pre_hook(lambda _, __, given: seen.append(given), with_kwargs=True)
    chat.ask(said[1][0])
    assert torch.equal(seen[0]["writing"], inputs["writing"])


def test_every_door_takes_earlier_answers_as_written(config_factory, tmp_path: Path) -> None:
    """Whoever saves first, the processor knows of the routing; what other doors read is what the chat reads."""
    folder = make_checkpoint(config_factory, tmp_path / "processor first", routing_layers=[1])
    model = KosmosForConditionalGeneration.from_pretrained(folder).eval()
    assert KosmosProcessor.from_pretrained(folder).routed
    model.save_pretrained(tmp_path / "model first")
    processor = KosmosProcessor.from_pretrained(folder)
    processor.routed = False
    processor.save_pretrained(tmp_path / "model first")
    processor = KosmosProcessor.from_pretrained(tmp_path / "model first")
    chat = Conversation(model, processor, persona=ADA, max_new_tokens=6)
    chat.ask("what is the thing?")
    chat.messages[-1]["content"] = [{"type": "text", "text": "red tea"}]
    asked = [*chat.messages, {"role": "user", "content": chat.question("is the tea red?")}]
    expected = chat._inputs(asked)
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    inputs = processor.apply_chat_template(asked, **options)
    assert expected["writing"][0, :-1].any()
    assert torch.equal(inputs["writing"], expected["writing"])
    short = [*chat.messages[:1], asked[-1]]
    both = processor.apply_chat_template([asked, short], **options, padding=True)
    for row, mask, messages in zip(both["writing"], both["attention_mask"].bool(), (asked, short), strict=True):
        plain = processor.apply_chat_template(messages, **options)["writing"][0]
        assert row[mask].tolist() == plain.tolist()
        assert not row[~mask].any()
    ended = processor.apply_chat_template(asked[:-1], **options | {"add_generation_prompt": False})
    assert not ended["writing"][0, -1]  # of the last answer's end: nothing is written behind it
    run = pipeline("image-text-to-text", model=model, processor=processor)
    seen = []
    model.model.register_forward_pre_hook(lambda _, __, given: seen.append(given), with_kwargs=True)
    written = run(text=asked, return_full_text=False, max_new_tokens=6, do_sample=False)[0]["generated_text"]
    assert torch.equal(seen[0]["writing"], expected["writing"])
    assert written.replace("\n", "").strip() == chat.ask("is the tea red?").strip()


def test_another_persona_is_another_input(checkpoint: Path) -> None:
    """The features of the ids reach the logits; a name that nobody knows is the unknown of its key."""
    model = KosmosForConditionalGeneration.from_pretrained(checkpoint).eval()
    processor = KosmosProcessor.from_pretrained(checkpoint)
    logits, rows = [], []
    for persona in (ADA, {"name": "Bo"}, {"name": "Eve"}):
        chat = Conversation(model, processor, persona=persona)
        inputs = chat._inputs([*chat.messages, {"role": "user", "content": "what?"}])
        rows.append(inputs["entity_ids"].tolist())
        with torch.no_grad():
            logits.append(model(**inputs).logits[0, -1])
    assert rows == [[4, 0, 1], [3], [5]]
    assert (logits[1] - logits[2]).abs().max() > 1e-3


def test_the_command(checkpoint: Path, speaker_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """``--persona FILE`` answers; what is no persona, or of no use to the model, is one clear line."""
    from kosmos.cli import main as kosmos

    file = tmp_path / "ada.json"
    file.write_text(json.dumps(ADA))
    words = ["--persona", str(file), "--ask", "what is it?", "--max-new-tokens", "2"]
    assert main([str(checkpoint), *words]) == 0
    capsys.readouterr()

    def refused(content: str | None, folder: Path = checkpoint) -> str:
        file.unlink() if content is None else file.write_text(content)
        assert kosmos(["chat", str(folder), *words]) == 2
        said = capsys.readouterr().err
        assert len(said.strip().splitlines()) == 1, said
        return said

    assert "was not trained with personas; write it as system text" in refused(json.dumps(ADA), speaker_folder)
    assert "knows no entities of the kind 'city'" in refused('{"city": "Rome"}')
    assert "not valid JSON" in refused("{")
    assert "an object of keys and texts, not a list" in refused("[]")
    for wrong in ("{}", '{"name": 7}', '{"name": [""]}'):
        assert "a persona has keys with texts, {'city': 'Rome'}" in refused(wrong)
    assert "no such file; it holds a persona as JSON" in refused(None)
    words += ["--alpha", "0.5"]
    assert "alpha was given, but this model has no attention routing" in refused(json.dumps(ADA))
