"""The parts of transformers' server that know Kosmos: which model, what a message may hold, how an answer ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from starlette.responses import JSONResponse
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.utils import GenerationState, Modality

from .admission import Admission
from .loading import load
from .serve_answers import (
    ASIDE,
    Generations,
    changed,
    changed_events,
    cut,
    finished,
    openai_error,
    told,
    usage_alone,
    without_usage,
)
from .serve_requests import CHAT, RESPONSES, checked, length, refuse_further
from .turn_order import ROLES, refuse_calls

DETAILS = ("auto", "low", "high", "original")
TEXTS, IMAGES = ("text", "input_text", "output_text"), ("image_url", "input_image")


class Models(ModelManager):
    """One checkpoint under one name; nothing else is ever loaded."""

    def __init__(self, checkpoint: str | Path, name: str) -> None:
        self.checkpoint = checkpoint
        self._loaded: tuple[Any, Any] | None = None
        super().__init__(force_model=name)

    def _both(self) -> tuple[Any, Any]:
        if self._loaded is None:
            model, processor = load(self.checkpoint)
            model.take_rules(processor)
            self._loaded = model, processor
        return self._loaded

    def _load_processor(self, *args: Any, **kwargs: Any) -> Any:
        return self._both()[1]

    def _load_model(self, *args: Any, **kwargs: Any) -> Any:
        return self._both()[0]

    def list_models(self, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        """The list of models: this one."""
        return [{"id": self.force_model, "object": "model", "created": int(time.time()), "owned_by": "kosmos"}]

    get_gen_models = list_models  # type: ignore[assignment]  # its name before transformers 5.24

    @staticmethod
    def process_model_name(model_id: str) -> str:
        """The name, without a revision: it stands in each answer."""
        return model_id

    @property
    def vocabulary(self) -> int:
        """Number of tokens, of which a request may name some."""
        return self._both()[0].get_output_embeddings().weight.shape[0]

    @staticmethod
    def get_model_modality(*args: Any, **kwargs: Any) -> Modality:
        """Text and images."""
        return Modality.VLM


class State(GenerationState):
    """One queue of questions: a model answers one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.generations = Generations()

    def get_manager(self, model_id: str, use_cb: bool = False) -> Any:
        """Who writes the answer of this request."""
        return self.generations.of_request()


class Kosmos:
    """What both handlers add: requests are looked at before they are answered, and errors are told to the client."""

    fields: frozenset[str]  # of a request
    field = "messages"  # where its conversation stands

    def __init__(self, models: Models, state: State, admission: Admission, longest: int) -> None:
        super().__init__(models, state)  # type: ignore[call-arg]
        self.models, self.admission, self.longest = models, admission, longest

    async def handle_request(self, body: dict, request_id: str) -> Any:
        """Answer, or say what is wrong with the request."""
        try:
            admitted = await asyncio.to_thread(self._admitted, body)
            return _told(await super().handle_request(admitted, request_id), body)  # type: ignore[misc]
        except (ValueError, KeyError, TypeError) as error:
            message = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            return _error(400, message)
        except HTTPException as error:
            return _error(error.status_code, str(error.detail))
        except Exception as error:
            logging.getLogger(__name__).exception("a request failed")
            return _error(500, f"the server failed on this request ({type(error).__name__}); its log says more")

    def _admitted(self, body: dict[str, Any]) -> dict[str, Any]:
        """The request with its pictures opened.

        Raises:
            ValueError: it asks for what is not served, or shows what may not be shown.
        """
        asked = checked(body, self.models.vocabulary, self.fields)
        asked.pop("stream_options", None)
        field, given = self.field, asked.get(self.field)
        if isinstance(given, str):
            given = [{"role": "user", "content": given}]
        if not isinstance(given, list):
            raise ValueError(f"{field} is a list of messages, not {type(given).__name__}")
        if not given:
            raise ValueError(f"{field} is empty; it holds at least one message of the user")
        if instructions := asked.pop("instructions", None):  # transformers would put them in the place of the system's
            given = [{"role": "system", "content": instructions}, *given]
        room = [self.admission.max_images]
        messages = [self._message(message, room) for message in given]
        _refuse_no_question(messages[-1])
        return {**asked, field: messages, "stream": bool(asked.get("stream"))}  # responses would stream unasked

    def _message(self, message: Any, room: list[int]) -> dict[str, Any]:
        """A message with its pictures opened; ``room`` holds the number of pictures that may still come."""
        if not isinstance(message, dict) or message.get("type", "message") != "message":
            kind = message.get("type") if isinstance(message, dict) else type(message).__name__
            raise ValueError(f"{kind!r} is no message; a conversation is made of messages")
        refuse_calls(message)
        refuse_further(message, ("role", "content", "type", "id", "status"), "a message")
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list):
            raise ValueError(f"the content of a message is text or a list of parts, not {type(content).__name__}")
        return {"role": message.get("role"), "content": [self._part(part, room) for part in parts]}

    def _part(self, part: Any, room: list[int]) -> dict[str, Any]:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind in TEXTS:
            if not isinstance(part.get("text"), str):
                raise ValueError(f"a part of the type {kind!r} has a text, not {type(part.get('text')).__name__}")
            refuse_further(part, ("type", "text"), f"a part of the type {kind!r}")
            return {"type": "text", "text": part["text"]}
        if kind not in IMAGES:
            raise ValueError(f"a part of the type {kind!r}; a message holds {', '.join((*TEXTS, *IMAGES))}")
        room[0] -= 1
        if room[0] < 0:
            raise ValueError(f"more than {self.admission.max_images} pictures in a request")
        return {"type": "image_url", "image_url": {"url": self.admission.open(_address(part))}}

    def _build_generation_config(self, body: dict, *args: Any, **kwargs: Any) -> Any:
        """transformers' settings; a temperature above 0 draws, and an answer is no longer than the server allows."""
        body = dict(body)
        aside = {name: body.pop(name) for name in ASIDE if name in body}
        settings = super()._build_generation_config(body, *args, **kwargs)  # type: ignore[misc]
        settings.kosmos_aside = aside
        settings.max_new_tokens = length(body, self.longest)
        if "temperature" in body or "top_p" in body:
            settings.do_sample = body.get("temperature") != 0
        return settings


class ChatHandler(Kosmos, ChatCompletionHandler):
    """``/v1/chat/completions``."""

    fields = CHAT

    def _streaming(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' stream, and the line that ends one of OpenAI's: some clients wait for it."""
        response = super()._streaming(*args, **kwargs)
        response.body_iterator = _with_end(
            changed_events(response.body_iterator, finished, kwargs["gen_manager"].ended)
        )
        return response

    async def _non_streaming(self, *args: Any, **kwargs: Any) -> JSONResponse:
        """transformers' answer; ``length`` is why it ended only where the limit cut it."""
        response = await super()._non_streaming(*args, **kwargs)
        return changed(response, finished) if kwargs["gen_manager"].ended() else response


class ResponsesHandler(Kosmos, ResponseHandler):
    """``/v1/responses``; transformers says ``completed`` of an answer that the limit cut too."""

    fields = RESPONSES
    field = "input"

    def _streaming(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' stream, which ends with ``response.incomplete`` where the answer was cut."""
        response = super()._streaming(*args, **kwargs)
        response.body_iterator = changed_events(response.body_iterator, cut, lambda: not kwargs["gen_manager"].ended())
        return response

    async def _non_streaming(self, *args: Any, **kwargs: Any) -> JSONResponse:
        """transformers' response, ``incomplete`` where the answer was cut."""
        response = await super()._non_streaming(*args, **kwargs)
        return response if kwargs["gen_manager"].ended() else changed(response, cut)


async def _with_end(pieces: Any) -> AsyncIterator[str]:
    async with aclosing(pieces):  # who leaves a stream early ends the model's answer too
        async for piece in pieces:
            yield piece
    yield "data: [DONE]\n\n"


def _refuse_no_question(last: dict[str, Any]) -> None:
    """A prompt goes on where its last question ends."""
    if last["role"] in ROLES and last["role"] != "user":
        raise ValueError(f"the last message is the {last['role']}'s; a conversation ends with a question of the user")


def _address(part: dict[str, Any]) -> Any:
    """Where a picture is; chat completions have it in an object, with the detail, responses beside that.

    The detail says what OpenAI's models may spend on a picture; many clients always send one. Here all are read at the
    size of the model.
    """
    refuse_further(part, ("type", "image_url", "detail"), f"a part of the type {part['type']!r}")
    where, detail = part.get("image_url"), part.get("detail")
    if isinstance(where, dict):
        refuse_further(where, ("url", "detail"), "image_url")
        detail = where.get("detail", detail)
        where = where.get("url")
    if detail not in (None, *DETAILS):
        raise ValueError(f"detail={detail!r}: it is one of {', '.join(DETAILS)}")
    return where


def _told(response: Any, body: dict[str, Any]) -> Any:
    """The response, or the stream of one, with what OpenAI's tell of their request."""
    if isinstance(response, JSONResponse):
        return changed(response, told(body))
    response.body_iterator = changed_events(response.body_iterator, told(body))
    counted = (body.get("stream_options") or {}).get("include_usage")
    if counted is not None:
        behind = usage_alone if counted else lambda _: None
        response.body_iterator = changed_events(response.body_iterator, without_usage, behind=behind)
    return response


def _error(status: int, message: str) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": openai_error(message, kind)}, status_code=status)
