"""Every field of OpenAI's two requests, by the types of its client: honoured, or refused in one line that names it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import kosmos

testclient = pytest.importorskip("starlette.testclient")
openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from openai.types.chat import completion_create_params as chat_types  # noqa: E402
from openai.types.responses import response_create_params as response_types  # noqa: E402

from kosmos.serve import build_app  # noqa: E402
from kosmos.serve_penalties import Penalties  # noqa: E402

ASKED: list[Any] = [{"role": "user", "content": "what is it?"}]
REASONING_EFFORTS = ("minimal", "low", "medium", "high", "xhigh", "max")
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}

# Field: values that are served, values that are refused. What a table lacks has to be refused whatever its value.
BOTH: dict[str, tuple[list[Any], list[Any]]] = {
    "metadata": ([], [5, {"a": 1}, {"a" * 65: "b"}, {"a": "b" * 513}, {str(n): "" for n in range(17)}]),
    "model": (["kosmos"], ["gpt-5", 5]),
    "moderation": ([], [{}, {"model": "omni-moderation-latest"}]),
    "parallel_tool_calls": ([True, False], ["yes", 1]),
    "prompt_cache_key": (["a"], [5]),
    "prompt_cache_options": ([], [{}, {"mode": "explicit"}]),
    "prompt_cache_retention": ([], ["in_memory", "24h"]),
    "safety_identifier": (["a"], [5]),
    "service_tier": (["auto", "default"], ["flex", "scale", "priority", "fast", "ultrafast", 5]),
    "store": ([False], [True, 0]),
    "stream": ([True, False], ["yes", 1]),
    "stream_options": ([], [{}, {"include_usage": True}]),  # of what is no stream
    "temperature": ([0, 0.0, 0.5, 1, 2, 2.0], [-0.1, 2.1, "1", True, [1]]),
    "tool_choice": (["none", "auto"], ["required", {"type": "function", "function": {"name": "f"}}]),
    "tools": ([[]], [[{"type": "function", "function": {"name": "f"}}], [{"type": "web_search"}], {}]),
    "top_logprobs": ([0], [1, 20]),
    "top_p": ([0, 0.1, 1], [-0.1, 1.1, "1"]),
    "user": (["a"], [5]),
}
CHAT = BOTH | {
    "audio": ([], [{}, {"voice": "alloy", "format": "wav"}]),
    "frequency_penalty": ([-2, -1.5, 0, 1, 2.0], [-2.1, 2.1, "1", True]),
    "function_call": (["none", "auto"], [{"name": "f"}]),
    "functions": ([[]], [[{"name": "f"}]]),
    "logit_bias": ([{}, {"5": -100}, {"5": 100, "6": 1}], [{"5": 101}, {"a": 1}, {"99999999": 1}, [5]]),
    "logprobs": ([False], [True]),
    "max_completion_tokens": ([1, 2], [0, -1, 1.5, "1"]),
    "max_tokens": ([1, 2], [0, -1, 1.5, "1"]),
    "messages": ([ASKED], [[], [5], 5, {}, [{"role": "wizard", "content": "a"}]]),
    "modalities": ([["text"]], [["audio"], ["text", "audio"], "text"]),
    "n": ([1], [0, 2, True]),
    "prediction": ([], [{}, {"type": "content", "content": "a"}]),
    "presence_penalty": ([-2, -1.5, 0, 1, 2.0], [-2.1, 2.1, "1", True]),
    "reasoning_effort": (["none"], list(REASONING_EFFORTS)),
    "response_format": ([{"type": "text"}], [{"type": "json_object"}, SCHEMA]),
    "seed": ([0, -5, 2**62], [1.5, "1", 2**63]),
    "stop": (["a", ["a", "b"], []], ["", ["a", ""], 5, ["a"] * 17]),
    "verbosity": (["medium"], ["low", "high"]),
    "web_search_options": ([], [{}, {"search_context_size": "low"}]),
}
RESPONSES = BOTH | {
    "access_programs": ([], [{}, {"cyber": "standard"}]),
    "background": ([False], [True]),
    "background_options": ([], [{}, {"completion_window": "2h"}]),
    "context_management": ([[]], [[{"type": "compaction"}]]),
    "conversation": ([], ["conv_1", {"id": "conv_1"}]),
    "image": ([], [{}, {"context_compression": "auto"}]),
    "include": ([[]], [["message.output_text.logprobs"], ["reasoning.encrypted_content"]]),
    "input": (["what is it?", ASKED], [[], 5, [{"type": "item_reference", "id": "a"}]]),
    "instructions": (["be short", ""], [5, ["a"]]),
    "max_output_tokens": ([1, 2], [0, -1, 1.5, "1"]),
    "max_tool_calls": ([], [0, 1]),
    "metadata": ([{}, {"a": "b"}], BOTH["metadata"][1]),
    "previous_response_id": ([], ["resp_1"]),
    "prompt": ([], [{"id": "pmpt_1"}]),
    "reasoning": (
        [{}, {"effort": "none"}],
        [{"effort": effort} for effort in REASONING_EFFORTS] + [{"summary": "auto"}],
    ),
    "text": (
        [{}, {"format": {"type": "text"}}, {"verbosity": "medium"}],
        [{"format": {"type": "json_object"}}, {"format": SCHEMA}, {"verbosity": "low"}, {"other": 1}, "text"],
    ),
    "truncation": (["disabled"], ["auto"]),
}
DOORS = {
    "/v1/chat/completions": (CHAT, chat_types.CompletionCreateParamsStreaming, {"messages": ASKED, "max_tokens": 1}),
    "/v1/responses": (
        RESPONSES,
        response_types.ResponseCreateParamsStreaming,
        {"input": ASKED, "max_output_tokens": 1},
    ),
}
CASES = [(door, name) for door, (table, kind, _) in DOORS.items() for name in sorted({*kind.__annotations__, *table})]


@pytest.fixture(scope="module")
def folder(speaker_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose answers nothing ends but their limit."""
    import shutil

    path = tmp_path_factory.mktemp("fields") / "checkpoint"
    shutil.copytree(speaker_folder, path)
    rules = path / "generation_config.json"
    rules.write_text(json.dumps(json.loads(rules.read_text()) | {"eos_token_id": None}))
    return path


@pytest.fixture(scope="module")
def inside(folder: Path) -> Any:
    """HTTP to a server in this process."""
    return testclient.TestClient(build_app(folder, longest=12), base_url="http://localhost")


@pytest.fixture(scope="module")
def client(inside: Any) -> Any:
    """OpenAI's client of it."""
    return openai.OpenAI(base_url="http://localhost/v1", api_key="none", max_retries=0, http_client=inside)


@pytest.mark.parametrize(("door", "name"), CASES)
def test_a_field_is_served_or_refused(door: str, name: str, inside: Any) -> None:
    """None of the client's fields is passed over, those of its later versions neither."""
    table, _, least = DOORS[door]
    served, refused = table.get(name, ([], [True, {}, "a"]))
    for value in served:
        answer = inside.post(door, json={"model": "kosmos", **least, name: value})
        assert answer.status_code == 200, (value, answer.text)
    for value in refused:
        answer = inside.post(door, json={"model": "kosmos", **least, name: value})
        assert answer.status_code in (400, 404), (value, answer.text)
        error = answer.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
        assert "\n" not in error["message"]
        named = {"messages": "message|list", "model": "model|Server", "input": "message|input"}.get(name, name)
        assert any(word in error["message"] for word in named.split("|")), error["message"]


def test_a_field_that_nobody_has_is_refused(inside: Any) -> None:
    for door, (_, _, least) in DOORS.items():
        for name, match in (("top_k", "top_p"), ("temprature", "did you mean 'temperature'?"), ("stream", None)):
            answer = inside.post(door, json={"model": "kosmos", **least, name: None if match is None else 1})
            assert answer.status_code == (200 if match is None else 400)
            assert match is None or match in answer.json()["error"]["message"]
    other = inside.post("/v1/responses", json={"model": "kosmos", "input": ASKED, "stop": "a"})
    assert "stop is not served" in other.json()["error"]["message"]


@pytest.mark.parametrize(
    ("message", "match"),
    [
        ({"name": "Ann", "content": "who?"}, "a message with name='Ann'"),
        ({"content": [{"type": "text", "text": "a", "cache_control": {"type": "x"}}]}, "with cache_control="),
        ({"content": [{"type": "image_url", "image_url": {"url": "data:,", "detail": "fine"}}]}, "detail='fine'"),
        ({"content": [{"type": "input_image", "image_url": "data:,", "detail": 2}]}, "detail=2"),
        ({"content": [{"type": "input_image", "file_id": "file-1"}]}, "with file_id='file-1'"),
        ({"content": [{"type": "input_file", "file_id": "file-1"}]}, "a part of the type 'input_file'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_message_says_beside_its_text_is_not_passed_over(message: dict, match: str, inside: Any) -> None:
    for door, field in (("/v1/chat/completions", "messages"), ("/v1/responses", "input")):
        answer = inside.post(door, json={"model": "kosmos", field: [{"role": "user", **message}]})
        assert answer.status_code == 400
        assert match in answer.json()["error"]["message"]


def test_each_detail_of_a_picture_is_the_size_of_the_model(client: Any) -> None:
    """Clients that always send one get the answer of those that send none."""
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(file, "PNG")
    address = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    answers = set()
    for detail in ({}, *({"detail": name} for name in ("auto", "low", "high", "original"))):
        shown: Any = [{"type": "image_url", "image_url": {"url": address, **detail}}, {"type": "text", "text": "who?"}]
        asked: Any = [{"role": "user", "content": shown}]
        answer = client.chat.completions.create(model="kosmos", messages=asked, max_tokens=4)
        shown = [{"type": "input_image", "image_url": address, **detail}, {"type": "input_text", "text": "who?"}]
        asked = [{"role": "user", "content": shown}]
        other = client.responses.create(model="kosmos", input=asked, max_output_tokens=4)
        answers |= {answer.choices[0].message.content, other.output_text}
    assert len(answers) == 1


def test_an_answer_may_be_shown_again_as_it_came(client: Any) -> None:
    """A conversation goes on with the objects that the client gave."""
    first = client.chat.completions.create(model="kosmos", messages=ASKED, max_tokens=2).choices[0].message
    more = [*ASKED, first.model_dump(), {"role": "user", "content": "and now?"}]
    assert client.chat.completions.create(model="kosmos", messages=more, max_tokens=2).choices
    said = client.responses.create(model="kosmos", input=ASKED, max_output_tokens=2).output
    more = [*ASKED, *(item.model_dump() for item in said), {"role": "user", "content": "and now?"}]
    assert client.responses.create(model="kosmos", input=more, max_output_tokens=2).output_text


def test_penalties_are_those_of_the_formula() -> None:
    ids = torch.tensor([[5, 5, 6, 7, 7, 8], [5, 5, 9, 9, 9, 9]])
    scores = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    found = Penalties(2, frequency=0.7, presence=-1.5)(ids, scores)
    for row in range(2):
        for token in range(12):
            count = ids[row, 2:].tolist().count(token)
            expected = scores[row, token].item() - 0.7 * count + 1.5 * (count > 0)
            assert found[row, token].item() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(Penalties(6, 1.0, 1.0)(ids, scores), scores)  # a prompt is not penalised


@pytest.mark.parametrize(("frequency", "presence"), [(0.5, 0), (-2, 0), (0, 2), (0.2, -1.3), (2, 2)])
def test_a_penalised_answer_is_the_one_of_penalised_logits(
    frequency: float, presence: float, client: Any, folder: Path
) -> None:
    """Against greedy search by hand, one whole pass a token; the stream says the same."""
    model, processor = kosmos.load(folder)
    inputs = processor.apply_chat_template(
        ASKED, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    never, written = set(model.never_written(None)), []
    for _ in range(12):
        ids = torch.cat([inputs["input_ids"], torch.tensor([written], dtype=torch.long)], dim=1)
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, -1].tolist()
        scored = [
            score - frequency * written.count(token) - presence * (token in written) - 1e9 * (token in never)
            for token, score in enumerate(logits)
        ]
        written.append(max(range(len(scored)), key=scored.__getitem__))
    options = {"model": "kosmos", "messages": ASKED, "frequency_penalty": frequency, "presence_penalty": presence}
    expected = processor.tokenizer.decode(written, skip_special_tokens=True).strip()
    assert client.chat.completions.create(**options).choices[0].message.content == expected
    pieces = client.chat.completions.create(**options, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces).strip() == expected
    plain = client.chat.completions.create(model="kosmos", messages=ASKED).choices[0].message.content
    assert plain != expected  # they change something


def test_a_seed_is_of_its_answer_alone(folder: Path) -> None:
    """Whoever else asks at the same time, or has asked before."""
    import httpx

    app = build_app(folder, longest=12)

    async def ask(*seeds: int | None) -> list[str]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            bodies = [{"model": "kosmos", "messages": ASKED, "temperature": 2, "seed": seed} for seed in seeds]
            answers = await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for body in bodies))
        return [answer.json()["choices"][0]["message"]["content"] for answer in answers]

    alone = [asyncio.run(ask(seed))[0] for seed in (1, 2, 3)]
    assert len(set(alone)) == 3
    assert asyncio.run(ask(1, 2, 3)) == alone
    assert asyncio.run(ask(1, None, 2, 3))[2:] == alone[1:]
    assert asyncio.run(ask(1, None))[1] != asyncio.run(ask(1, None))[1]  # who gives none draws on


def test_numbers_of_tokens_in_a_stream(client: Any) -> None:
    """Asked for, in a chunk of their own without a choice; not asked for in none."""
    options = {"model": "kosmos", "messages": ASKED, "max_tokens": 3, "stream": True}
    *chunks, last = client.chat.completions.create(**options, stream_options={"include_usage": True})
    assert [chunk.usage for chunk in chunks] == [None] * len(chunks)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert (last.choices, last.usage.completion_tokens) == ([], 3)
    without = client.chat.completions.create(**options, stream_options={"include_usage": False})
    assert {chunk.usage for chunk in without} == {None}


def test_a_response_tells_what_it_was_asked(client: Any) -> None:
    asked = {
        "metadata": {"a": "b"},
        "temperature": 0.5,
        "max_output_tokens": 2,
        "instructions": "be short",
        "user": "me",
    }
    options = {"model": "kosmos", "input": ASKED, "service_tier": "auto", **asked}
    *_, last = client.responses.create(**options, stream=True)
    for found in (client.responses.create(**options), last.response):
        assert {name: getattr(found, name) for name in asked} == asked
        assert found.service_tier == "default"
    plain = client.chat.completions.create(model="kosmos", messages=ASKED, max_tokens=1, service_tier="auto")
    assert plain.service_tier == "default"


def test_a_stream_that_fails_says_why(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' event of an error has a form that the client does not read, and breaks at a quotation mark."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError('out of "memory"')

    monkeypatch.setattr(kosmos.KosmosForConditionalGeneration, "generate", fail)
    with pytest.raises(openai.APIError, match='out of "memory"'):
        list(client.chat.completions.create(model="kosmos", messages=ASKED, stream=True))
