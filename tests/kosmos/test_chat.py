"""Conversation: what the model is sent, what is kept, how it fails. Weights are random; everything else is real."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import kosmos
from kosmos import Conversation, KosmosForConditionalGeneration, KosmosProcessor
from kosmos.chat import main

RED = Image.new("RGB", (40, 40), "red")
BLUE = Image.new("RGB", (40, 40), "blue")


@pytest.fixture
def model(config, processor: KosmosProcessor) -> KosmosForConditionalGeneration:
    begin, slot, *_, end = processor.image_token_ids()
    settings = config(text={"vocab_size": len(processor.tokenizer)})
    settings.image_token_id, settings.boi_token_id, settings.eoi_token_id = slot, begin, end
    settings.num_image_tokens = settings.connector_config.num_queries = processor.num_image_tokens
    torch.manual_seed(0)
    return KosmosForConditionalGeneration(settings).eval()


@pytest.fixture
def checkpoint(model, processor, tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "checkpoints" / "step-000001"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder.parent / "latest").write_text("step-000001")
    return tmp_path / "run"


def test_answers_equal_generate_on_the_written_prompt(model, processor) -> None:
    chat = Conversation(model, processor, max_new_tokens=6)
    chat.ask("what is it?", images=[RED])
    second = chat.ask("and this?", images=BLUE)
    first_answer = chat.messages[1]["content"][0]["text"]
    prompt = f"<image>Question: what is it? Answer: {first_answer}\n<image>Question: and this? Answer:"
    inputs = processor(images=[RED, BLUE], text=prompt, return_tensors="pt")
    ends = [2, processor.tokenizer.convert_tokens_to_ids("</line>")]
    ids = model.generate(
        **inputs,
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=1,
        suppress_tokens=[processor.image_slot_id, processor.span_slot_id],
    )
    tail = ids[0, inputs["input_ids"].shape[1] :]
    assert second == processor.tokenizer.decode(tail, skip_special_tokens=True).replace("\n", "").lstrip()


def test_pieces_of_the_stream_are_the_answer(model, processor) -> None:
    chat = Conversation(model, processor, max_new_tokens=8)
    pieces = list(chat.stream("what is it?", [RED]))
    assert "".join(pieces).strip() == chat.messages[-1]["content"][0]["text"]
    chat.reset()
    assert chat.messages == []


def test_an_outgrown_conversation_says_so_and_stays_usable(model, processor) -> None:
    chat = Conversation(model, processor, max_new_tokens=2)
    with pytest.raises(ValueError, match="the model takes 256"):
        chat.ask("why? " * 200)
    assert chat.messages == []
    chat.ask("what is it?", [RED])
    assert len(chat.messages) == 2


def test_errors_in_the_generating_thread_are_raised_here(model, processor) -> None:
    chat = Conversation(model, processor, no_such_option=1)
    with pytest.raises(ValueError, match="no_such_option"):
        chat.ask("what is it?", [RED])


def test_a_notebook_shows_pictures_and_escapes_text(model, processor) -> None:
    chat = Conversation(model, processor, system="<b>", max_new_tokens=2)
    chat.ask("what is <i>it</i>?", [RED])
    shown = chat._repr_html_()
    assert "data:image/png;base64" in shown
    assert "&lt;i&gt;" in shown
    assert "&lt;b&gt;" in shown


def test_command_answers_and_refuses(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RED.save(tmp_path / "red.png")
    assert main([str(checkpoint), "--image", str(tmp_path / "red.png"), "--ask", "what is it?"]) == 0
    assert capsys.readouterr().out.endswith("\n")
    with pytest.raises(FileNotFoundError, match=r"no\.png"):
        main([str(checkpoint), "--image", str(tmp_path / "no.png"), "--ask", "what?"])
    (tmp_path / "cut.png").write_bytes((tmp_path / "red.png").read_bytes()[:60])
    with pytest.raises(ValueError, match="cannot be read as an image"):
        main([str(checkpoint), "--image", str(tmp_path / "cut.png"), "--ask", "what?"])


def test_paths_that_mean_a_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    whole = checkpoint / "checkpoints" / "step-000001"
    assert kosmos.find_checkpoint(checkpoint) == whole
    assert kosmos.find_checkpoint(whole) == whole
    assert kosmos.find_checkpoint(tmp_path) == whole
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="not a checkpoint"):
        kosmos.find_checkpoint(tmp_path / "empty")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="'llama'"):
        kosmos.load(tmp_path / "other")
