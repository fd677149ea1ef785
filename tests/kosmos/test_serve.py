"""``kosmos serve`` as OpenAI's own client sees it: a started process, text, pictures, streams, limits."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from kosmos import Conversation
from kosmos.admission import listening
from kosmos.pictures import as_data_uri
from kosmos.serve import main, refuse_body
from kosmos.serve_requests import CHAT, RESPONSES, checked, length

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
openai = pytest.importorskip("openai")

RED, BLUE = (Image.new("RGB", (40, 30), colour) for colour in ("red", "blue"))
KEY = "a-key-of-the-test"
QUESTION = "what is it?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, speaker_folder: Path) -> Path:
    """A checkpoint with pictures beside it."""
    path = tmp_path_factory.mktemp("serve") / "checkpoint"
    shutil.copytree(speaker_folder, path)
    RED.save(path.parent / "red.png")
    (path.parent / "pictures").mkdir()
    BLUE.save(path.parent / "pictures" / "blue.png")
    return path


@pytest.fixture(scope="module")
def base(folder: Path, python: str) -> Iterator[str]:
    """Address of a server that was started by the command."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        python, "-m", "kosmos", "serve", str(folder), "--port", str(port), "--max-images", "3",
        "--max-image-mb", "0.05", "--allow-files", str(folder.parent / "pictures"),
    ]  # fmt: skip
    with open(folder.parent / "log", "w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "KOSMOS_API_KEY": KEY})
        try:
            end = time.monotonic() + 300
            while "answers at" not in Path(log.name).read_text():
                assert process.poll() is None, Path(log.name).read_text()
                assert time.monotonic() < end, Path(log.name).read_text()
                time.sleep(0.2)
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    assert process.poll() is None, Path(log.name).read_text()
                    assert time.monotonic() < end, Path(log.name).read_text()
                    time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def client(base: str):
    return openai.OpenAI(base_url=f"{base}/v1", api_key=KEY, max_retries=0)


def shown(*parts: str | Image.Image) -> list[dict]:
    return [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": as_data_uri(part)}}
        for part in parts
    ]


@pytest.fixture(scope="module")
def chat(folder: Path) -> Conversation:
    return Conversation(folder, max_new_tokens=12)


@pytest.mark.slow
def test_the_official_client_is_answered_as_a_conversation_answers(client, chat: Conversation) -> None:
    assert [model.id for model in client.models.list()] == ["kosmos"]
    asked = [(QUESTION,), (RED, QUESTION), ("is", RED, "or", BLUE, "larger </s> <image>?")]
    for parts in asked:
        chat.reset()
        expected = chat.ask(list(parts)).strip()
        assert expected
        messages = [{"role": "user", "content": shown(*parts)}]
        whole = client.chat.completions.create(model="kosmos", messages=messages, max_tokens=12)
        assert whole.choices[0].message.content == expected
        pieces = client.chat.completions.create(model="kosmos", messages=messages, max_tokens=12, stream=True)
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected
        content = [
            {"type": "input_text", "text": part["text"]}
            if part["type"] == "text"
            else {"type": "input_image", "image_url": part["image_url"]["url"]}
            for part in shown(*parts)
        ]
        given = [{"role": "user", "content": content}]
        response = client.responses.create(model="kosmos", input=given, max_output_tokens=12)
        assert response.output_text == expected
        stream = client.responses.create(model="kosmos", input=given, max_output_tokens=12, stream=True)
        assert "".join(event.delta for event in stream if event.type == "response.output_text.delta") == expected


@pytest.mark.slow
def test_a_conversation_of_several_turns(client, chat: Conversation) -> None:
    chat.reset()
    first = chat.ask(QUESTION, RED).strip()
    second = chat.ask("and this?", BLUE).strip()
    messages = [
        {"role": "user", "content": shown(RED, QUESTION)},
        {"role": "assistant", "content": first},
        {"role": "user", "content": shown(BLUE, "and this?")},
    ]
    said = client.chat.completions.create(model="kosmos", messages=messages, max_tokens=12)
    assert said.choices[0].message.content == second
    cut = client.chat.completions.create(model="kosmos", messages=messages, max_tokens=12, stop=[second[:2]])
    assert cut.choices[0].message.content == ""
    assert cut.choices[0].finish_reason == "stop"
    drawn = {
        client.chat.completions.create(model="kosmos", messages=messages, max_tokens=12, temperature=2.0, seed=seed)
        .choices[0]
        .message.content
        for seed in (1, 2, 1)
    }
    assert len(drawn) == 2


@pytest.mark.slow
def test_what_is_not_served_is_said(client, base: str, folder: Path) -> None:
    def refused(*parts: dict, match: str, kind=openai.BadRequestError, **options) -> None:
        with pytest.raises(kind, match=match):
            client.chat.completions.create(
                model="kosmos", messages=[{"role": "user", "content": list(parts)}], max_tokens=2, **options
            )

    def picture(url: str) -> dict:
        return {"type": "image_url", "image_url": {"url": url}}

    noise = Image.frombytes("RGB", (200, 200), os.urandom(120_000))
    text = {"type": "text", "text": QUESTION}
    refused(*shown(RED, RED, RED, RED, QUESTION), match="more than 3 pictures")
    refused(*shown(noise, QUESTION), match="at most 50000 are read")
    refused(picture("data:image/png;base64,@@"), text, match="not base64")
    refused(picture("data:image/png;base64," + base64.b64encode(b"no").decode()), text, match="cannot be read")
    refused(picture("http://127.0.0.1/x.png"), text, match="not fetched from the web")
    for outside in (f"file://{folder.parent}/red.png", "file:///etc/passwd", "../red.png", "/etc/passwd"):
        refused(picture(outside), text, match="no file of the folder")
    refused({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, text, match="input_audio")
    refused(text, match="n=2", n=2)
    refused(text, match="tools", tools=[{"type": "function", "function": {"name": "f"}}])
    refused(text, match="chat_template_kwargs", extra_body={"chat_template_kwargs": {"chat_template": "x"}})
    refused(text, match="generation_config", extra_body={"generation_config": "{}"})
    refused({"type": "text", "text": "why? " * 300}, match="the model takes 256")
    refused(text, match="'gpt-5'", extra_body={"model": "gpt-5"})
    allowed = [picture(f"file://{folder.parent}/pictures/blue.png"), text]
    inside = client.chat.completions.create(
        model="kosmos", messages=[{"role": "user", "content": allowed}], max_tokens=2
    )
    assert inside.choices
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{base}/v1", api_key="wrong", max_retries=0).models.list()
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="kosmos", prompt="a")
    for path, headers, status in (
        ("/load_model", {}, 404), ("/reset", {}, 404), ("/docs", {}, 404),
        ("/v1/models", {"Host": "evil.example"}, 403),
        ("/v1/chat/completions", {"Content-Length": "999999999"}, 413),
    ):  # fmt: skip
        request = urllib.request.Request(base + path, b"{}", {"Authorization": f"Bearer {KEY}", **headers})
        request.method = "GET" if path == "/v1/models" else "POST"
        with pytest.raises(urllib.error.HTTPError) as found:
            urllib.request.urlopen(request, timeout=20)
        assert found.value.code == status, path


@pytest.mark.slow
def test_what_clients_look_for(client, base: str) -> None:
    """A model by its name, the end of a stream as OpenAI ends it, numbers of an answer, and questions that are none."""
    assert client.models.retrieve("kosmos").id == "kosmos"
    with pytest.raises(openai.NotFoundError, match="GET /v1/models/gpt-5 is not served"):
        client.models.retrieve("gpt-5")
    asked = {"model": "kosmos", "messages": [{"role": "user", "content": QUESTION}]}
    plain = client.chat.completions.create(**asked, max_tokens=3, stop=[], logit_bias={}, tools=[], presence_penalty=0)
    assert (plain.model, plain.choices[0].finish_reason, plain.usage.completion_tokens) == ("kosmos", "length", 3)
    forced = [
        client.chat.completions.create(**asked, max_tokens=2, logit_bias={str(token): 100}).choices[0].message.content
        for token in (20, 21)
    ]
    assert forced[0] != forced[1]  # each id's token, whatever the model would say
    sent = json.dumps({**asked, "max_tokens": 2, "stream": True}).encode()
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{base}/v1/chat/completions", sent, headers)) as answer:
        events = answer.read().decode().strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    assert json.loads(events[-2].removeprefix("data: "))["usage"]["completion_tokens"] == 2
    for messages, match in (
        ([], "messages is empty"),
        ([{"role": "user", "content": " "}], "the question is empty"),
        ([{"role": "user", "content": []}], "the question is empty"),
        ([*asked["messages"], {"role": "assistant", "content": "it"}], "the last message is the assistant's"),
        ([{"role": "system", "content": "be short"}], "the last message is the system's"),
        ([{"role": "wizard", "content": "hi"}], "a message of the role 'wizard'"),
        ([{"role": "user", "content": [{"type": "text", "text": 5}]}], "a part of the type 'text' has a text, not int"),
        ([{"role": "user", "content": None}], "text or a list of parts, not NoneType"),
    ):
        with pytest.raises(openai.BadRequestError, match=match):
            client.chat.completions.create(model="kosmos", messages=messages, max_tokens=2)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"max_tokens": 0}, "max_tokens is a whole number, 1 or more, not 0"),
        ({"max_output_tokens": "ten"}, "not 'ten'"),
        ({"max_completion_tokens": 2.5}, "not 2.5"),
        ({"max_tokens": True}, "not True"),
        ({"temperature": -1}, "temperature is a number from 0 to 2, not -1"),
        ({"temperature": float("inf")}, "not inf"),
        ({"temperature": float("nan")}, "not nan"),
        ({"temperature": [1]}, r"not \[1\]"),
        ({"top_p": 1.5}, "top_p is a number from 0 to 1, not 1.5"),
        ({"frequency_penalty": -2.5}, "frequency_penalty is a number from -2 to 2, not -2.5"),
        ({"presence_penalty": 3}, "presence_penalty is a number from -2 to 2, not 3"),
        ({"seed": 2**70}, "seed is a whole number"),
        ({"stop": ""}, "none of them empty"),
        ({"stop": 5}, "stop is a text or a list of texts"),
        ({"stop": ["a", 3]}, "stop is a text or a list of texts"),
        ({"stop": ["a"] * 17}, "at most 16"),
        ({"stream": "yes"}, "stream is true or false, not 'yes'"),
        ({"instructions": 5}, "instructions is text, not 5"),
        ({"logit_bias": [1]}, "logit_bias is an object"),
        ({"logit_bias": {"97": 1}}, "'97' is no id of a token; there are 0 to 96"),
        ({"logit_bias": {"-1": 1}}, "'-1' is no id"),
        ({"logit_bias": {"5": 101}}, "logit_bias of 5 is a number from -100 to 100"),
        ({"n": 2}, "n=2"),
        ({"tool_choice": "required"}, "tool_choice='required' is not served"),
        ({"response_format": "json"}, "response_format='json': answers are text"),
        ({"response_format": {"type": "json_object"}}, "response_format='json_object'"),
        ({"response_format": []}, "response_format="),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format='json_schema'"),
        ({"background": True}, "background=True is not served"),
        ({"logprobs": True}, "logprobs=True is not served"),
    ],
    ids=str,
)
def test_a_field_that_would_not_do_what_it_says_is_refused(fields: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        checked({"model": "kosmos", **fields}, 97, CHAT | RESPONSES)


def test_fields_that_say_nothing_are_left_out() -> None:
    quiet = dict.fromkeys(("temperature", "top_p", "n", "stop", "stream", "logit_bias", "seed", "response_format"))
    quiet |= {"stop": [], "logit_bias": {}, "tool_choice": "none", "response_format": {"type": "text"}, "tools": []}
    kept = checked({"model": "kosmos", **quiet, "text": {"format": {"type": "text"}}}, 97, CHAT | RESPONSES)
    assert not {"temperature", "stop", "logit_bias", "seed"} & set(kept)
    asked = checked({"temperature": 0, "stop": "a", "logit_bias": {"5": 1}, "max_tokens": 3.0, "n": 1}, 97, CHAT)
    assert (asked["stop"], asked["logit_bias"], length(asked, 256)) == (["a"], {"5": 1.0}, 3)
    assert length({}, 256) == 256
    assert length({"max_output_tokens": 10**9}, 256) == 256


@pytest.mark.parametrize(
    ("body", "kind", "status", "match"),
    [
        (b"{}", "text/plain", 415, "Content-Type: application/json"),
        (b"a=b", "application/x-www-form-urlencoded", 415, "Content-Type"),
        (b"{nope", "application/json", 400, "no JSON"),
        (b"", "application/json", 400, "no JSON"),
        (b"[]", "application/json; charset=utf-8", 400, "not a list"),
        (b'{"temperature": NaN}', "application/json", 400, "NaN is no number"),
        (b'{"content": "\xe9"}', "application/json", 400, "no JSON"),
        (b"[" * 100_000, "application/json", 400, "no JSON"),
        (b'{"max_tokens": ' + b"9" * 5000 + b"}", "application/json", 400, "no JSON"),
    ],
)
def test_a_body_that_is_no_json_object_is_said(body: bytes, kind: str, status: int, match: str) -> None:
    found = refuse_body({"content-type": kind}, body)
    assert found is not None
    assert found[0] == status
    assert match in found[1]
    assert refuse_body({"content-type": "application/json"}, b'{"model": "kosmos"}') is None


def test_who_listens_elsewhere_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KOSMOS_API_KEY", raising=False)
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org"):
        with pytest.raises(ValueError, match="KOSMOS_API_KEY"):
            main(["runs/none", "--host", host])
    with pytest.raises(ValueError, match="no such folder"):
        main(["runs/none", "--allow-files", "/no/such/folder"])
    with pytest.raises(ValueError, match="'public', or a network"):
        main(["runs/none", "--allow-urls", "everything"])


def test_a_port_that_is_taken_is_one_line(speaker_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For the server and the page; neither says before that it answers."""
    pytest.importorskip("gradio")
    from kosmos.cli import main as kosmos

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for verb in (["serve"], ["chat", "--web"]):
            assert kosmos([*verb, str(speaker_folder), "--port", port]) == 2
            out, error = capsys.readouterr()
            assert "answers at" not in out
            assert f"kosmos: --host 127.0.0.1 --port {port}: Address already in use; choose another\n" in error
    for host, wrong in (("127.0.0.1", 70000), ("192.0.2.1", 8000)):
        with pytest.raises(ValueError, match=f"--host {host} --port {wrong}: "):
            listening(host, wrong)
