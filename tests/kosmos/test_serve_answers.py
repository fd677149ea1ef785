"""How an answer of the server ends: cut by the limit, by itself in the last token, or at a text of the client."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

testclient = pytest.importorskip("starlette.testclient")
openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from kosmos.serve import build_app  # noqa: E402
from kosmos.serve_answers import Trimmed, before_stop  # noqa: E402

ASKED = [{"role": "user", "content": "what is it?"}]
LONG = 12


def client_of(folder: Path) -> Any:
    """OpenAI's client of a server in this process."""
    inside = testclient.TestClient(build_app(folder, longest=LONG), base_url="http://localhost")
    return openai.OpenAI(base_url="http://localhost/v1", api_key="none", max_retries=0, http_client=inside)


@pytest.fixture(scope="module")
def endless(speaker_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A client of a model whose answers nothing ends, and in whose answers are letters."""
    return client_of(with_ends(speaker_folder, tmp_path_factory.mktemp("endless") / "checkpoint", lambda _: []))


@pytest.fixture(scope="module")
def short(speaker_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A client of a model whose answers every token ends."""
    every = with_ends(speaker_folder, tmp_path_factory.mktemp("short") / "checkpoint", lambda size: list(range(size)))
    return client_of(every)


def with_ends(source: Path, folder: Path, ends: Callable[[int], list[int]]) -> Path:
    shutil.copytree(source, folder)
    rules = folder / "generation_config.json"
    size = json.loads((folder / "config.json").read_text())["text_config"]["vocab_size"]
    rules.write_text(json.dumps(json.loads(rules.read_text()) | {"eos_token_id": ends(size) or None}))
    return folder


def by_chat(client: Any, most: int, **options: Any) -> tuple[str | None, str | None]:
    """Text of a chat completion, and why it ended; the stream says the same."""
    options |= {"model": "kosmos", "messages": ASKED, "max_completion_tokens": most, "temperature": 0}
    (choice,) = client.chat.completions.create(**options).choices
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**options, stream=True) if chunk.choices]
    assert "".join(chunk.delta.content or "" for chunk in chunks).rstrip() == choice.message.content
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == choice.finish_reason
    return choice.message.content, choice.finish_reason


def by_responses(client: Any, most: int) -> tuple[str, str, str | None]:
    """Text of a response, its status, and why it is incomplete; the stream says the same."""
    options = {"model": "kosmos", "input": ASKED, "max_output_tokens": most, "temperature": 0}
    whole = client.responses.create(**options)
    *_, item_done, last = client.responses.create(**options, stream=True)
    assert item_done.type == "response.output_item.done"
    assert last.type == f"response.{whole.status}"
    for found in (last.response, whole):
        assert found.status == whole.status
        assert found.incomplete_details == whole.incomplete_details
        assert found.output_text.rstrip() == whole.output_text
        assert [item.status for item in found.output] == [whole.status]
    assert item_done.item.status == whole.status
    details = whole.incomplete_details
    return whole.output_text, whole.status, None if details is None else details.reason


@pytest.mark.parametrize("most", [1, 5, LONG + 8])
def test_an_answer_that_the_limit_cut_says_so(most: int, endless: Any) -> None:
    """The client's limit and, where it asks for more, the server's."""
    text, status, reason = by_responses(endless, most)
    assert (status, reason) == ("incomplete", "max_output_tokens")
    assert by_chat(endless, most) == (text, "length")


@pytest.mark.parametrize("most", [1, 5])
def test_an_answer_that_ends_in_its_last_token_is_whole(most: int, short: Any) -> None:
    text, status, reason = by_responses(short, most)
    assert (status, reason) == ("completed", None)
    assert by_chat(short, most) == (text, "stop")


def test_a_stop_text_is_no_part_of_the_answer(endless: Any) -> None:
    """Wherever it is: inside, at the limit, at the beginning; one that does not come changes nothing."""
    whole, _ = by_chat(endless, LONG)
    assert len(whole) > 4
    for stop in (whole[1:3], whole[-2:], whole[0], whole[2:]):
        assert by_chat(endless, LONG, stop=["not there", stop]) == (whole[: whole.find(stop)].rstrip("\n"), "stop")
    assert by_chat(endless, LONG, stop=[whole + "more"]) == (whole, "length")


@given(st.text("ab \n", max_size=12), st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=2), st.randoms())
def test_pieces_are_the_text_before_a_stop(text: str, stops: list[str], random: Any) -> None:
    """However the text comes in pieces; and as soon as it is sure that a piece is of the answer."""
    places = sorted(random.randrange(len(text) + 1) for _ in range(3))
    pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]

    async def read() -> tuple[str, list[Any]]:
        queue: asyncio.Queue = asyncio.Queue()
        for piece in [*pieces, None]:
            queue.put_nowait(piece)
        trimmed, found = Trimmed(queue, stops), []
        while (piece := await trimmed.get()) is not None:
            found.append(piece)
        return "".join(found), found

    said, _ = asyncio.run(read())
    assert said == before_stop(text.lstrip(), stops).rstrip("\n")


def test_text_is_not_held_back_without_need() -> None:
    async def read() -> list[Any]:
        queue: asyncio.Queue = asyncio.Queue()
        for piece in (" a", "b", "c\n", "d", None):
            queue.put_nowait(piece)
        trimmed = Trimmed(queue, ["bx"])
        return [await trimmed.get() for _ in range(5)]

    assert asyncio.run(read()) == ["a", "", "bc", "\nd", None]
