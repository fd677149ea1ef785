"""``kosmos serve``: OpenAI's chat completions and responses, with pictures, by transformers' own server.

What is ours is little: which model, which pictures may be shown (admission.py), who may ask, and that an answer is the
one that :class:`~kosmos.Conversation` gives. The rest, from the tokens to the events of a stream, is ``transformers
serve``; of its routes those are open that neither load other models nor read tokens from text.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import inspect
import ipaddress
import json
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .admission import Admission, is_loopback, listening

if TYPE_CHECKING:
    from fastapi import FastAPI

ROUTES = {("POST", "/v1/chat/completions"), ("POST", "/v1/responses"), ("GET", "/v1/models"), ("GET", "/health")}
LONGEST = 256


def build_app(
    checkpoint: str | Path,
    name: str = "kosmos",
    admission: Admission | None = None,
    key: str | None = None,
    hosts: Sequence[str] = ("localhost", "127.0.0.1", "[::1]"),
    longest: int = LONGEST,
) -> FastAPI:
    """The server as an ASGI application.

    Args:
        checkpoint: folder or run directory.
        name: what clients call the model.
        admission: which pictures may be shown.
        key: what a client must send as its API key; None: nothing.
        hosts: names by which the server may be called, without the port; empty: any. Without a key this keeps web
            pages from asking through a name that they made point here.
        longest: most tokens of an answer.

    Raises:
        ModuleNotFoundError: fastapi, uvicorn or openai is not installed.
    """
    import fastapi  # noqa: F401 - whose absence is told, before transformers fails without a word of it
    import openai  # noqa: F401
    import uvicorn  # noqa: F401
    from transformers.cli.serving.server import build_server

    from .serve_handlers import ChatHandler, Models, ResponsesHandler, State

    if "@" in name or ":" in name:
        raise ValueError(f"--name {name!r}: a model's name has neither @ nor :")
    models, state = Models(checkpoint, name), State()
    limits = admission or Admission()
    handlers: dict[str, Any] = {
        "chat_handler": ChatHandler(models, state, limits, longest),
        "response_handler": ResponsesHandler(models, state, limits, longest),
        "generation_state": state,
    }
    parameters = inspect.signature(build_server).parameters  # the handlers of routes that stay shut differ by version
    handlers |= {other: None for other in parameters if other.endswith("_handler") and other not in handlers}
    app = build_server(models, **handlers)
    app.add_api_route("/v1/models/{model:path}", lambda: models.list_models()[0], methods=["GET"])
    app.add_middleware(
        Guard, key=key, hosts=tuple(hosts), most=2_000_000 + limits.max_images * (4 * limits.max_bytes // 3 + 100),
        name=name,
    )  # fmt: skip
    return app


class Guard:
    """The door: shut routes, keys, foreign host names, bodies that are too long.

    Args:
        app: the ASGI application behind it.
        key: see :func:`build_app`.
        hosts: see :func:`build_app`.
        most: longest body, in bytes.
        name: see :func:`build_app`.
    """

    def __init__(self, app: Callable, key: str | None, hosts: tuple[str, ...], most: int, name: str) -> None:
        self.app, self.key, self.hosts, self.most = app, key, hosts, most
        self.routes = ROUTES | {("GET", f"/v1/models/{name}")}

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        """Hand the request on, or answer why not."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if refusal := self.refusal(scope["method"], scope["path"], headers):
            await answer_error(send, *refusal)
            return
        body = await self._body(receive)
        if body is None:
            await answer_error(send, 413, f"the request is longer than {self.most} bytes")
            return
        if scope["method"] == "POST" and (misread := await asyncio.to_thread(refuse_body, headers, body)):
            await answer_error(send, *misread)
            return
        given = False

        async def replay() -> dict[str, Any]:
            nonlocal given
            if given:
                return await receive()  # the client leaving
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)

    def refusal(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str] | None:
        """Status and reason if the request may not come in."""
        if (method, path) not in self.routes:
            return 404, f"{method} {path} is not served; these are: {', '.join(sorted(path for _, path in ROUTES))}"
        host = headers.get("host", "")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if self.hosts and name.lower() not in self.hosts:
            return 403, f"this server is called {' or '.join(self.hosts)}, not {name!r}"
        if self.key is not None and path != "/health":
            kind, _, sent = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(sent.strip().encode(), self.key.encode()):
                return 401, "the API key is missing or wrong"
        if (size := headers.get("content-length", "0")).isdecimal() and int(size) > self.most:
            return 413, f"the request is longer than {self.most} bytes"
        return None

    async def _body(self, receive: Callable[[], Awaitable[dict[str, Any]]]) -> bytes | None:
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self.most:
                return None
            if message["type"] != "http.request" or not message.get("more_body"):
                return bytes(body)


def refuse_body(headers: dict[str, str], body: bytes) -> tuple[int, str] | None:
    """Status and reason if a body is no JSON object; a page of the web can send JSON only where it is asked first."""
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return 415, "a request is JSON: send it with the header Content-Type: application/json"
    try:
        given = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        return 400, f"the request is no JSON: {error}"
    if not isinstance(given, dict):
        return 400, f'a request is a JSON object, {{"model": …, "messages": […]}}, not a {type(given).__name__}'
    return None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


async def answer_error(send: Callable, status: int, message: str) -> None:
    """Answer in the form in which OpenAI's clients read errors."""
    from starlette.responses import JSONResponse

    kind = "authentication_error" if status == 401 else "invalid_request_error"
    error = {"message": message, "type": kind, "param": None, "code": None}
    response = JSONResponse({"error": error}, status_code=status)
    await response({"type": "http", "method": "GET"}, _nothing, send)


async def _nothing() -> dict[str, Any]:
    await asyncio.sleep(3600)
    return {"type": "http.disconnect"}


def main(argv: Sequence[str]) -> int:
    """``kosmos serve CHECKPOINT [--port 8000] …``."""
    arguments = _parser().parse_args(list(argv))
    key = os.environ.get("KOSMOS_API_KEY") or None
    local = is_loopback(arguments.host)
    if not local and key is None:
        raise ValueError(
            f"--host {arguments.host} lets others ask: set the environment variable KOSMOS_API_KEY to a key that they "
            "must send, or listen on 127.0.0.1"
        )
    if arguments.max_images < 0 or arguments.max_image_mb <= 0 or arguments.max_new_tokens < 1:
        raise ValueError("--max-images is 0 or more, --max-image-mb and --max-new-tokens are more than 0")
    files = Path(arguments.allow_files).expanduser() if arguments.allow_files else None
    if files is not None and not files.is_dir():
        raise ValueError(f"--allow-files {files}: no such folder")
    admission = Admission(
        arguments.max_images, int(arguments.max_image_mb * 1e6), files, "public" in arguments.allow_urls,
        tuple(_network(text) for text in arguments.allow_urls if text != "public"),
    )  # fmt: skip
    hosts = ("localhost", "127.0.0.1", "[::1]", arguments.host) if local else ()
    app = build_app(arguments.checkpoint, arguments.name, admission, key, hosts, arguments.max_new_tokens)
    _run(app, arguments.host, arguments.port, arguments.name)
    return 0


def _run(app: FastAPI, host: str, port: int, name: str) -> None:
    import uvicorn

    shown = f"[{host}]" if ":" in host else host
    with listening(host, port) as door:
        print(f"{name} answers at http://{shown}:{port}/v1 (Ctrl-C ends it)", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)).run([door])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kosmos serve",
        description="Answer OpenAI's clients: /v1/chat/completions and /v1/responses, with pictures and streaming.",
        epilog="The API key that clients must send is read from the environment variable KOSMOS_API_KEY.",
    )
    parser.add_argument("checkpoint", help="checkpoint folder or run directory, e.g. runs/demo")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (8000)")
    parser.add_argument("--name", default="kosmos", help="what clients call the model (kosmos)")
    parser.add_argument("--max-new-tokens", type=int, default=LONGEST, help=f"longest answer in tokens ({LONGEST})")
    parser.add_argument("--max-images", type=int, default=16, help="most pictures of a request (16)")
    parser.add_argument("--max-image-mb", type=float, default=20.0, help="largest file of a picture in MB (20)")
    parser.add_argument("--allow-files", metavar="FOLDER", help="read pictures by file:// from below this folder")
    parser.add_argument(
        "--allow-urls", action="append", default=[], metavar="public|NETWORK",
        help="fetch pictures by http(s) from public addresses, or from a network of your own such as 10.1.0.0/16",
    )  # fmt: skip
    return parser


def _network(text: str) -> Any:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"--allow-urls {text}: 'public', or a network such as 10.1.0.0/16") from error
