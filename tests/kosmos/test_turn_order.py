"""One rule for the order of messages, at every door that takes messages: what is one turn, and what is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import pipeline

from kosmos import Conversation, KosmosForConditionalGeneration, KosmosProcessor
from kosmos.pictures import as_data_uri
from kosmos.transcript import parts_of
from kosmos.turn_order import joined, runs
from kosmos_data import Corpus
from kosmos_data.adapters import convert
from kosmos_data.objectives._flatten import flatten

RED = Image.new("RGB", (40, 30), "red")
SHOWN = {"type": "image_url", "image_url": {"url": as_data_uri(RED)}}
Messages = list[dict[str, Any]]


def said(role: str, *parts: Any) -> dict[str, Any]:
    """A message of texts and pictures."""
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": role, "content": parts[0] if len(parts) == 1 and isinstance(parts[0], str) else content}


def user(*parts: Any) -> dict[str, Any]:
    return said("user", *parts)


def answer(*parts: Any) -> dict[str, Any]:
    return said("assistant", *parts)


ASKED = user("what is the red thing?")
SAME: dict[str, tuple[Messages, Messages, str]] = {
    "two questions": (
        [user("a red thing."), user("what is it?")],
        [user("a red thing. what is it?")],
        "Question: a red thing. what is it? Answer:",
    ),
    "a picture, then its question": (
        [user(SHOWN), ASKED],
        [user(SHOWN, "what is the red thing?")],
        "<image>Question: what is the red thing? Answer:",
    ),
    "two answers": (
        [ASKED, answer("a circle,"), answer("red"), ASKED],
        [ASKED, answer("a circle, red"), ASKED],
        "Question: what is the red thing? Answer: a circle, red\nQuestion: what is the red thing? Answer:",
    ),
    "the system twice": (
        [said("system", "a red"), said("system", "circle"), ASKED],
        [said("system", "a red circle"), ASKED],
        "a red circle\nQuestion: what is the red thing? Answer:",
    ),
    "nothing from the system": (
        [said("system", " "), ASKED],
        [ASKED],
        "Question: what is the red thing? Answer:",
    ),
    "blanks around": (
        [said("system", " a red\n"), user(" what is it?\n"), answer(" red\n"), ASKED],
        [said("system", "a red"), user("what is it?"), answer("red"), ASKED],
        "a red\nQuestion: what is it? Answer: red\nQuestion: what is the red thing? Answer:",
    ),
    "an empty message beside a question": (
        [user(""), ASKED],
        [ASKED],
        "Question: what is the red thing? Answer:",
    ),
}
REFUSED: dict[str, tuple[Messages, str, str]] = {
    "the system in the middle": (
        [ASKED, answer("red"), said("system", "be short"), ASKED],
        "message 3 is the system's: it speaks in front of the conversation only",
        "no conversation",
    ),
    "the system behind a question": (
        [ASKED, said("system", "be short"), ASKED],
        "message 2 is the system's: it speaks in front",
        "no conversation",
    ),
    "an answer first": (
        [answer("red"), ASKED],
        "an answer is first, and nothing asked for it",
        "answer without question",
    ),
    "an empty question": ([user(" ")], "the question is empty", "empty"),
    "an empty question before": ([user(" "), answer("red"), ASKED], "the question is empty", "empty"),
    "a picture alone": ([user(SHOWN)], "the question is empty", "empty"),
    "a call of a tool": (
        [ASKED, {**answer("red"), "tool_calls": [{"id": "a"}]}, ASKED],
        "tool_calls: the model calls no tools",
        "fields missing or of another kind",
    ),
}


@pytest.fixture(scope="module")
def doors(
    first_speaker: KosmosForConditionalGeneration, processor: KosmosProcessor, speaker_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Callable[[Messages], Any]]:  # fmt: skip
    """What each door makes of messages, ids or an answer, so that the same is the same; ValueError if it takes none."""
    folder = tmp_path_factory.mktemp("doors")
    testclient = pytest.importorskip("starlette.testclient")
    pytest.importorskip("openai")
    from kosmos.serve import build_app

    client = testclient.TestClient(build_app(speaker_folder, longest=12), base_url="http://localhost")
    piped = pipeline("image-text-to-text", model=str(speaker_folder), device="cpu")
    collate = pytest.importorskip("trl.trainer.sft_trainer").DataCollatorForVisionLanguageModeling(processor)

    def by_template(messages: Messages) -> list[int]:
        return ids_of(messages, processor)

    def by_conversation(messages: Messages) -> tuple[str, list[int]]:
        chat = Conversation(first_speaker, processor, max_new_tokens=6).fork(messages)
        return chat.prompt(), chat._inputs(chat.messages)["input_ids"][0].tolist()

    def by_pipeline(messages: Messages) -> str:
        return piped(text=messages, return_full_text=False, max_new_tokens=6, do_sample=False)[0]["generated_text"]

    def by_serve(messages: Messages, path: str = "chat/completions", field: str = "messages") -> tuple[str, int]:
        body = {"model": "kosmos", field: messages, "temperature": 0}
        found = client.post(f"/v1/{path}", json=body)
        given = found.json()
        if found.status_code == 400:
            raise ValueError(given["error"]["message"])
        if field == "messages":
            return given["choices"][0]["message"]["content"], given["usage"]["prompt_tokens"]
        return given["output"][0]["content"][0]["text"], given["usage"]["input_tokens"]

    def by_responses(messages: Messages) -> tuple[str, int]:
        renamed = [
            {**one, "content": [_for_responses(part) for part in one["content"]]}
            if isinstance(one["content"], list)
            else one
            for one in messages
        ]
        return by_serve(renamed, "responses", "input")

    def by_trl(messages: Messages) -> list[int]:
        pictures = [RED for one in messages for part in one["content"] if part == SHOWN]
        placed = [
            {**one, "content": [{"type": "image"} if part == SHOWN else part for part in parts_of(one)]}
            for one in messages
        ]  # TRL itself would put the pictures into the first text
        return collate([{"messages": placed, "images": pictures}])["input_ids"][0].tolist()

    def by_import(messages: Messages) -> list[int]:
        source = folder / "m.jsonl"
        source.write_text(json.dumps({"messages": [*messages, answer("red")]}))
        out = folder / f"out-{len(list(folder.iterdir()))}"
        _, tally = convert("messages", source, out)
        if tally:
            raise ValueError("; ".join(f"{why}: {tally.examples[why]}" for why in tally))
        (document,) = Corpus(out)
        length = len(processor.encode_text(" red")) + 1
        return flatten(document, processor, "supervised").ids.tolist()[:-length]

    return {door.__name__: door for door in (
        by_template, by_conversation, by_pipeline, by_serve, by_responses, by_trl, by_import,
    )}  # fmt: skip


def _for_responses(part: dict[str, Any]) -> dict[str, Any]:
    if part == SHOWN:
        return {"type": "input_image", "image_url": SHOWN["image_url"]["url"]}
    return {**part, "type": "input_text"}


def ids_of(messages: Messages, processor: KosmosProcessor) -> list[int]:
    found = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    return found["input_ids"][0].tolist()


@pytest.mark.parametrize("case", SAME)
def test_what_is_one_turn(case: str, doors: dict[str, Callable], processor: KosmosProcessor) -> None:
    given, plain, written = SAME[case]
    found = {name: door(given) for name, door in doors.items()}
    assert found == {name: door(plain) for name, door in doors.items()}
    ids = processor(text=written, images=[RED] * written.count("<image>") or None, return_tensors="pt")["input_ids"]
    expected = ids[0].tolist()
    assert found["by_template"] == found["by_trl"] == found["by_import"] == expected
    assert found["by_conversation"][1] == expected
    assert found["by_serve"] == found["by_responses"]
    assert found["by_serve"][1] == len(expected)


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_none(case: str, doors: dict[str, Callable]) -> None:
    given, match, reason = REFUSED[case]
    for name, door in doors.items():
        with pytest.raises(ValueError, match=reason if name == "by_import" else match):
            door(given)


@pytest.mark.parametrize("nothing", [[], [said("system", "")], [said("system", " \n"), said("developer", "\t")]])
def test_a_conversation_of_nothing_is_refused(nothing: Messages, doors: dict[str, Callable]) -> None:
    """Of the system's empty words too, as seed 18 of ``tests/hostile/test_json.py`` has them."""
    for name in ("by_template", "by_serve", "by_responses", *(["by_pipeline"] if nothing else [])):
        with pytest.raises(ValueError, match=r"no message|empty|ends with a question"):
            doors[name](nothing)


def test_an_empty_answer_is_said_and_not_learnt(doors: dict[str, Callable], processor: KosmosProcessor) -> None:
    """The model may have written nothing; what it should write instead, nobody knows."""
    talk = [ASKED, answer(""), ASKED]
    written = "Question: what is the red thing? Answer: \nQuestion: what is the red thing? Answer:"
    expected = processor(text=written, return_tensors="pt")["input_ids"][0].tolist()
    assert doors["by_template"](talk) == doors["by_trl"](talk) == expected
    assert doors["by_serve"](talk)[1] == len(expected)
    with pytest.raises(ValueError, match="empty"):
        doors["by_import"](talk)


def test_a_developer_is_the_system(doors: dict[str, Callable]) -> None:
    """At all doors but TRL's, which knows no such role."""
    doors = {name: door for name, door in doors.items() if name != "by_trl"}
    mixed = [said("system", "a red"), said("developer", "circle"), ASKED]
    for name, door in doors.items():
        assert door(mixed) == door([said("system", "a red circle"), ASKED])
        reason = "no conversation" if name == "by_import" else "message 2 is the developer's: it speaks in front"
        with pytest.raises(ValueError, match=reason):
            door([ASKED, said("developer", "be short"), ASKED])


def test_instructions_stand_before_what_the_system_says(doors: dict[str, Callable], speaker_folder: Path) -> None:
    from starlette.testclient import TestClient

    from kosmos.serve import build_app

    client = TestClient(build_app(speaker_folder, longest=6), base_url="http://localhost")
    body = {"model": "kosmos", "input": [said("system", "circle"), ASKED], "instructions": "a red", "temperature": 0}
    found = client.post("/v1/responses", json=body).json()
    _, length = doors["by_serve"]([said("system", "a red circle"), ASKED])
    assert found["usage"]["input_tokens"] == length


def test_the_rule_itself() -> None:
    assert runs([]) == []
    assert runs(["system", "user"]) == [[0], [1]]
    assert runs(["system", "developer", "user", "user", "assistant"]) == [[0, 1], [2, 3], [4]]

    def text(part: Any) -> str | None:
        return part if isinstance(part, str) else None

    assert joined([["a"], ["b", 1], [2, "c"], ["", "d "], ["e"]], text, " ") == [
        "a", " ", "b", 1, 2, "c", " ", "d ", "e",
    ]  # fmt: skip
