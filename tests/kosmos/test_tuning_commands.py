"""Commands with adapters: merge, and chat with them; mistakes are one line."""

from __future__ import annotations

import copy
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from kosmos.cli import main
from kosmos.loading import load
from kosmos.tuning import Tuning
from kosmos.tuning.storage import fingerprint

from .test_tuning import tuned


def test_commands(build: Any, processor: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """merge, and chat with a base and adapters, with a run alone, and with what was merged; mistakes are one line."""
    vocabulary = len(processor.tokenizer)
    model = build(images=False, text={"vocab_size": vocabulary})
    model.config.image_token_id = processor.image_token_ids()[1]
    processor.save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "base")
    for name, tuning in (("lora", Tuning("lora", rank=4)), ("prefix", Tuning("prefix", tokens=2))):
        tuned(tmp_path / "base", tuning, tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    ask = ["--ask", "what is the red thing?", "--max-new-tokens", "8"]

    def answer(*words: str) -> str:
        assert main(["chat", *words, *ask]) == 0
        return capsys.readouterr().out

    base, lora, prefix = (str(tmp_path / name) for name in ("base", "lora", "prefix"))
    assert main(["merge", lora, "--out", str(tmp_path / "merged")]) == 0
    capsys.readouterr()
    assert main(["merge", lora, "--out", str(tmp_path / "merged twice")]) == 0
    said = capsys.readouterr().out.partition("merged; ")[2]
    assert shlex.split(said) == ["kosmos", "chat", str(tmp_path / "merged twice")]
    assert f"Made from `{Path(lora).name}`" in (tmp_path / "merged" / "README.md").read_text()
    capsys.readouterr()
    assert answer(lora) == answer(base, "--adapter", lora) == answer(str(tmp_path / "merged"))
    assert answer(prefix) == answer(base, "--adapter", prefix, "--adapter", lora)
    from kosmos import Conversation

    chat = Conversation(base, adapter=[lora, prefix], max_new_tokens=8)
    chat.use("prefix")
    assert chat.ask("what is the red thing?") + "\n" == answer(prefix)
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    other = str(tmp_path / "other")
    processor.save_pretrained(other)
    model.save_pretrained(other)
    prints = [fingerprint(Path(folder)) for folder in (base, other)]
    capsys.readouterr()
    another = f"was trained on another model: its base {base} has fingerprint {prints[0]}, {other} has {prints[1]}"
    mistakes = [
        (["chat", other, "--adapter", lora, *ask], another),
        (["merge", lora, "--base", other, "--out", str(tmp_path / "x")], another),
        (["merge", prefix, "--out", str(tmp_path / "x")], "method prefix cannot be merged"),
        (["merge", base, "--out", str(tmp_path / "x")], "is no adapter"),
        (["merge", lora, "--out", base], "is not empty"),
        (["chat", base, "--adapter", base, *ask], "is no adapter"),
        (["chat", base, "--adapter", str(tmp_path / "nowhere"), *ask], "is no adapter"),
    ]
    for words, message in mistakes:
        assert main(words) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "x").exists()
    settings = json.loads((tmp_path / "lora" / "tuning.json").read_text())
    assert settings["tuning"]["rank"] == 4
    assert settings["base"] == base


def turns_of(chat: Any) -> tuple[str, list[int]]:
    """What the next question continues, with an earlier answer in it, and what ends an answer."""
    said = [("user", "what is the red thing?"), ("assistant", "a boat")]
    chat.messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in said]
    return chat.prompt(), chat.model.generation_config.eos_token_id


def test_another_adapter_brings_its_turns(build: Any, processor: Any, tmp_path: Path) -> None:
    """Answers of a base end with their line, its adapter's with ``</s>``: in prompts as in rules, however switched."""
    from kosmos import Conversation

    model = build(images=False, text={"vocab_size": len(processor.tokenizer)})
    model.take_rules(processor)
    processor = copy.deepcopy(processor)
    expected = {}
    for name, turn_end in (("base", "line"), ("lora", "eos"), ("lines", "line")):
        processor.end_turns(turn_end)
        model.generation_config.update(**processor.writing_rules())
        if name == "base":
            model.save_pretrained(tmp_path / name)
        else:
            tuned(tmp_path / "base", Tuning("lora", rank=4), tmp_path / name)
            model.generation_config.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
        expected[name] = turns_of(Conversation(tmp_path / name))
    assert expected["base"] == expected["lines"]
    assert [prompt.partition("boat")[2] for prompt, _ in expected.values()] == ["\n", "</s>", "\n"]
    adapters = [tmp_path / "lora", tmp_path / "lines"]
    in_memory = Conversation(tmp_path / "base")
    chats = [
        Conversation(tmp_path / "base", adapter=adapters),
        Conversation(*load(tmp_path / "base", adapters=adapters)),
        Conversation(in_memory.model, in_memory.processor, adapter=adapters),
    ]
    for chat in chats:
        assert turns_of(chat) == expected["lora"]
        for name in (None, "lora", "lines", "lora", None):
            chat.use(name)
            assert turns_of(chat.fork()) == expected[name or "base"]
