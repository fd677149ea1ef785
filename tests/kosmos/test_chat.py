"""Conversation: what the model is sent, what is kept, how it fails. Weights are random; everything else is real."""

from __future__ import annotations

import base64
import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GenerationConfig, TemperatureLogitsWarper
from transformers.generation import LogitsProcessorList, MaxLengthCriteria, StoppingCriteriaList

import kosmos
from kosmos import Conversation, KosmosForConditionalGeneration
from kosmos.chat import main
from kosmos.pictures import open_picture
from kosmos.segments import TooLong

from ..warm_python import WarmPython

RED = Image.new("RGB", (40, 40), "red")
BLUE = Image.new("RGB", (40, 40), "blue")


@pytest.fixture
def checkpoint(speaker_folder: Path, tmp_path: Path) -> Path:
    """A run directory that a test may change."""
    folder = tmp_path / "run" / "checkpoints" / "step-000001"
    shutil.copytree(speaker_folder, folder)
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
    chat = Conversation(model, processor, do_sample=True, temperature=-1)
    with pytest.raises(ValueError, match="strictly positive float"):
        chat.ask("what is it?", [RED])


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 0.9},
        {"num_beams": 2},
        {"num_beams": 2, "num_beam_groups": 1, "return_dict_in_generate": True, "output_scores": True},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
        {"stop_strings": ["e", "a"]},
        {"generation_config": GenerationConfig(max_new_tokens=3, eos_token_id=2, pad_token_id=1)},
        {"generation_config": GenerationConfig(max_new_tokens=3, num_beams=2, eos_token_id=2, pad_token_id=1)},
        {"max_length": 40},
        {"min_new_tokens": 2, "use_cache": False},
        {"cache_implementation": "static"},
        {"logits_processor": LogitsProcessorList([TemperatureLogitsWarper(2.0)])},
        {"stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(30)]), "return_dict_in_generate": True},
    ],
)
def test_any_option_of_generate(model, processor, options: dict) -> None:
    torch.manual_seed(1)
    sizes = {} if {"generation_config", "max_length"} & set(options) else {"max_new_tokens": 5}
    chat = Conversation(model, processor, **sizes, **options)
    said = chat.ask("what is it?", RED)
    inputs = chat._inputs(chat.messages[:1])
    torch.manual_seed(1)
    plain = {"do_sample": False} if "generation_config" not in options else {}
    rows = model.generate(**inputs, **{**plain, **sizes, **options}, tokenizer=processor.tokenizer)
    rows = rows if isinstance(rows, torch.Tensor) else rows.sequences
    written = processor.tokenizer.decode(rows[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert said == written.replace("\n", "").lstrip()


def test_a_streamer_of_ones_own_is_given_each_token(model, processor) -> None:
    class Tokens:
        def __init__(self) -> None:
            self.seen, self.ended = 0, False

        def put(self, value: torch.Tensor) -> None:
            self.seen += value.numel()

        def end(self) -> None:
            self.ended = True

    tokens = Tokens()
    Conversation(model, processor, max_new_tokens=5, min_new_tokens=5, streamer=tokens).ask("what is it?", RED)
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image", "image": RED}, {"type": "text", "text": "what is it?"}]}],
        tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    assert tokens.seen == prompt["input_ids"].numel() + 5
    assert tokens.ended
    with pytest.raises(ValueError, match="num_return_sequences=2"):
        Conversation(model, processor, num_return_sequences=2)


def test_who_leaves_early_stops_the_model(model, processor) -> None:
    chat = Conversation(model, processor, max_new_tokens=100_000, min_new_tokens=99_999, do_sample=True)
    stream = chat.stream("what is it?", RED)
    kept = next(stream) + next(stream)
    stream.close()
    assert not any(thread.name == "answer" for thread in threading.enumerate())
    assert chat.messages[-1]["content"][0]["text"] == kept.strip()


LEAVES = """
import sys, kosmos
chat = kosmos.Conversation(sys.argv[1], max_new_tokens=100_000, min_new_tokens=99_999, do_sample=True)
stream = chat.stream("what is it?", sys.argv[2])
print(next(stream))
"""


def test_a_stream_left_at_the_end_of_a_program(checkpoint: Path, tmp_path: Path, warm_python: WarmPython) -> None:
    """The generator still exists when the interpreter ends, and its thread is inside torch."""
    RED.save(tmp_path / "red.png")
    done = warm_python.run(LEAVES, str(checkpoint), str(tmp_path / "red.png"), folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_pictures_are_given_as_people_have_them(model, processor, tmp_path: Path) -> None:
    RED.save(tmp_path / "red.png")
    array = np.asarray(RED)
    given = [
        RED, tmp_path / "red.png", str(tmp_path / "red.png"), (tmp_path / "red.png").read_bytes(), array,
        np.moveaxis(array, -1, 0), torch.tensor(array),
    ]  # fmt: skip
    chat = Conversation(model, processor, max_new_tokens=2)
    for picture in given:
        chat.reset()
        chat.ask("what is it?", picture)
        (shown,) = chat.pictures()
        assert np.array_equal(np.asarray(shown), array)
    chat.reset()
    chat.ask("what is it?", None)
    assert chat.pictures() == []
    refused = [
        ([None], "None is no picture"),
        (array[..., 0], "got shape"),
        (array.astype(float), "must be uint8"),
        (b"GIF89a", "6 bytes cannot be read"),
        (3, "int is no picture"),
        ({"type": "image"}, "dict is no picture"),
    ]
    for picture, named in refused:
        with pytest.raises(ValueError, match=named):
            chat.ask("what is it?", picture)
    bomb = Image.new("1", (9000, 9000))
    bomb.save(tmp_path / "bomb.png")
    with pytest.raises(ValueError, match="9000×9000 pixels"):
        chat.ask("what is it?", tmp_path / "bomb.png")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"
    with pytest.raises(ValueError, match="cannot be read as an image"):
        chat.ask("what is it?", eps)


def test_a_question_in_parts_and_an_empty_one(model, processor) -> None:
    chat = Conversation(model, processor, max_new_tokens=2)
    chat.ask(["is", RED, "or", BLUE, "larger?"])
    assert chat.prompt().startswith("<s>Question: is<image>or<image>larger? Answer:")
    for empty in ("", "  ", [RED], []):
        with pytest.raises(ValueError, match="the question is empty"):
            chat.ask(empty, RED)
    with pytest.raises(ValueError, match="not NoneType"):
        chat.ask(None)
    assert len(chat.messages) == 2
    assert chat.take_back()[1] == {"type": "image", "image": RED}
    with pytest.raises(ValueError, match="nothing was asked"):
        chat.take_back()


def test_a_model_without_eyes_says_so(config, processor) -> None:
    settings = config(images=False, text={"vocab_size": len(processor.tokenizer)})
    chat = Conversation(KosmosForConditionalGeneration(settings).eval(), processor, max_new_tokens=2)
    chat.ask("what is it?")
    with pytest.raises(ValueError, match="no vision encoder"):
        chat.ask("what is it?", RED)


def test_the_oldest_turns_make_room(model, processor) -> None:
    chat = Conversation(model, processor, system="Look.", max_new_tokens=1)
    for number in range(16):
        chat.ask(f"what is number {number} of all these things?", RED, forget=True)
    assert chat.forgotten > 0
    assert chat.messages[0] == {"role": "system", "content": "Look."}
    assert len(chat.messages) == 1 + 2 * (16 - chat.forgotten)
    with pytest.raises(TooLong, match="the model takes 256"):
        chat.ask("why? " * 200, forget=True)


def test_a_conversation_is_written_to_a_file(model, processor, tmp_path: Path) -> None:
    chat = Conversation(model, processor, max_new_tokens=2)
    chat.ask("what is <image>?", RED)
    chat.save(tmp_path / "chat.json")
    written = json.loads((tmp_path / "chat.json").read_text())
    assert written["prompt"] == chat.prompt()
    assert written["prompt"].startswith("<s><image>Question: what is <image>? Answer:")
    picture, text = written["messages"][0]["content"]
    assert np.array_equal(np.asarray(open_picture(base64.b64decode(picture["image_url"]["url"].split(",")[1]))), RED)
    assert text == {"type": "text", "text": "what is <image>?"}
    chat.save(tmp_path / "chat.html")
    assert "&lt;image&gt;" in (tmp_path / "chat.html").read_text()


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
    base = tmp_path / "base" / "checkpoints"
    shutil.copytree(whole, base / "step-000900")
    (base / "latest").write_text("step-000900")
    assert kosmos.find_checkpoint(tmp_path) == base / "step-000900"  # most steps
    for start in ("somewhere/base", "somewhere/base/checkpoints/step-000900"):
        (checkpoint / "config.yaml").write_text(f"model: {{checkpoint: {start}}}")
        assert kosmos.find_checkpoint(tmp_path) == whole  # tuned from it
    os.utime(base / "latest")
    assert kosmos.find_checkpoint(tmp_path) == whole
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="not a checkpoint"):
        kosmos.find_checkpoint(tmp_path / "empty")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="'llama'"):
        kosmos.load(tmp_path / "other")
