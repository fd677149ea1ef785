"""Every command of the chat in every state of it; options that ``generate()`` does not know; a persona that is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kosmos import Conversation
from kosmos.terminal import COMMANDS, Terminal

RED = Image.new("RGB", (12, 9), "red")


def asked_and_taken_back(chat: Conversation) -> None:
    chat.ask("what?", images=[RED])
    chat.take_back()


STATES: dict[str, Callable[[Conversation], Any]] = {
    "empty": lambda chat: None,
    "asked": lambda chat: chat.ask("what is it?", images=[RED]),
    "taken back": asked_and_taken_back,
    "forgotten": lambda chat: (chat.ask("what?"), chat.reset()),
}
LINES = [
    *(command for command in COMMANDS if command != "/quit"),
    *("/save a.json", "/save a.html", "/save gone/a.json", "/save .", "/image folder", "/image 'a", "/fused a.png red"),
    *("/adapter none", "/ image", "/", "//", "\\", "'"),
]


@pytest.mark.parametrize("state", STATES)
def test_no_line_ends_the_chat(state: str, chat: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    """What :meth:`Terminal.run` catches is a message; all else would be a traceback, and the conversation gone."""
    for line in LINES:
        chat.reset()
        STATES[state](chat)
        with suppress(ValueError, OSError):
            Terminal(chat).take(line)
        assert isinstance(chat.ask("and now?"), str), line
        assert [message["role"] for message in chat.messages[-2:]] == ["user", "assistant"], line
    assert "Traceback" not in capsys.readouterr().out


def test_a_conversation_without_turns_is_exported(chat: Conversation) -> None:
    chat.save("a.json")
    assert json.loads(Path("a.json").read_text())["messages"] == []
    assert chat.prompt() == ""
    assert chat.export()["prompt"] == ""
    chat.save("a.html")
    assert Path("a.html").read_text().startswith("<!doctype html>")
    spoken_to = Conversation(chat.model, chat.processor, system="Be short.")
    assert "Be short." in spoken_to.prompt()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"temprature": 0.2}, "unknown option 'temprature' of generate.*did you mean 'temperature'"),
        ({"max_token": 3}, "unknown option 'max_token'"),
        ({"zzz": 1}, "unknown option 'zzz'"),
    ],
)
def test_options_of_no_generate_are_refused_at_once(option: dict[str, Any], said: str, chat: Conversation) -> None:
    with pytest.raises(ValueError, match=said):
        Conversation(chat.model, chat.processor, **option)


def test_options_of_generate_are_taken(chat: Conversation) -> None:
    options = {"num_beams": 2, "repetition_penalty": 1.1, "stop_strings": ["x"], "top_p": 0.9, "use_cache": True}
    assert isinstance(Conversation(chat.model, chat.processor, max_new_tokens=2, **options).ask("what?"), str)


@pytest.mark.parametrize("persona", ["Ada", ["Ada"], 7])
def test_a_persona_is_a_mapping(persona: Any, chat: Conversation) -> None:
    with pytest.raises(ValueError, match="a persona is a mapping of keys and texts, not "):
        Conversation(chat.model, chat.processor, persona=persona)
