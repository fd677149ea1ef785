"""Commands with adapters: merge, and chat with them; mistakes are one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kosmos.cli import main
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
