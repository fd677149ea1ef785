"""How an answer of the server begins and ends: without blanks around it, up to a stop text, and whether it was cut."""

from __future__ import annotations

import asyncio
import copy
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, nullcontext
from typing import Any

import torch
from starlette.responses import JSONResponse
from transformers.cli.serving.utils import GenerateManager
from transformers.generation import LogitsProcessorList

from .serve_penalties import Penalties

# What transformers reads otherwise, and settings carry past it until the answer is begun: it makes a repetition penalty
# of the first, has not the second, and seeds what another request may be drawing from.
ASIDE = ("frequency_penalty", "presence_penalty", "seed")
FAILED = 'data: {"error": "'
CUT = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
# What a response tells of its request, where that says it.
TOLD = (
    "background", "instructions", "max_output_tokens", "metadata", "parallel_tool_calls", "prompt_cache_key",
    "safety_identifier", "store", "temperature", "text", "top_p", "truncation", "user",
)  # fmt: skip
Change = Callable[[dict[str, Any]], dict[str, Any]]
Extra = Callable[[dict[str, Any]], dict[str, Any] | None]


class Trimmed:
    """The queue of a stream: no blanks before the answer, no line ends behind it, nothing from a stop text on.

    Args:
        queue: of pieces of text, None at the end.
        stops: texts that end an answer; a piece that may begin one is held back.
    """

    def __init__(self, queue: asyncio.Queue, stops: Sequence[str] = ()) -> None:
        self.queue, self.stops = queue, list(stops)
        self.held, self.first, self.stopped = "", True, False
        self.ready: deque[Any] = deque()

    async def get(self) -> Any:
        """Wait for the next piece."""
        return self.ready.popleft() if self.ready else self._trim(await self.queue.get())

    def get_nowait(self) -> Any:
        """The next piece if it is there; asyncio.QueueEmpty otherwise."""
        return self.ready.popleft() if self.ready else self._trim(self.queue.get_nowait())

    def _trim(self, piece: Any) -> Any:
        if piece is None and (rest := self.held.rstrip("\n")):
            self.held = ""  # it might have begun a stop text, and did not
            self.ready.append(None)
            return rest
        if type(piece) is not str:
            return piece
        if self.stopped:
            return ""
        text = self.held + piece
        text = text.lstrip() if self.first else text
        whole = before_stop(text, self.stops)
        self.stopped = len(whole) < len(text)
        kept = whole if self.stopped else whole[: len(whole) - self._begun(whole)]
        kept = kept.rstrip("\n")
        self.held = "" if self.stopped else text[len(kept) :]
        self.first = self.first and not kept
        return kept

    def _begun(self, text: str) -> int:
        """How many characters at the end of a text may be the beginning of a stop text."""
        return max((n for stop in self.stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)


def before_stop(text: str, stops: Sequence[str]) -> str:
    """Return a text up to the first of the texts that end an answer."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]


class Noted:
    """A model whose ``generate()`` notes the tokens that it writes.

    Args:
        model: the model.
        ids: takes the tokens.
        aside: of :data:`ASIDE`, what the request asks for.
    """

    def __init__(self, model: Any, ids: list[int], aside: Mapping[str, Any]) -> None:
        self.model, self.ids, self.aside = model, ids, aside

    def generate(self, **options: Any) -> Any:
        """As the model's; a seed holds for this answer alone, and from its first token."""
        penalties = [self.aside.get(name, 0.0) for name in ASIDE[:2]]
        if any(penalties):
            penalised = Penalties(options["input_ids"].shape[-1], *penalties)
            options["logits_processor"] = LogitsProcessorList([penalised])
        if "streamer" in options:
            options["streamer"] = NotedStreamer(options["streamer"], self.ids)
        with nullcontext() if (seed := self.aside.get("seed")) is None else torch.random.fork_rng():
            if seed is not None:
                torch.manual_seed(seed)
            written = self.model.generate(**options)
        if "streamer" not in options:
            self.ids += written[0, options["input_ids"].shape[-1] :].tolist()
        return written


class NotedStreamer:
    """Notes each token, then hands it on."""

    def __init__(self, streamer: Any, ids: list[int]) -> None:
        self.streamer, self.ids, self.prompt = streamer, ids, True

    def put(self, value: Any) -> None:
        """Take the prompt, then one token after the other."""
        if not self.prompt:
            self.ids += value.flatten().tolist()
        self.prompt = False
        self.streamer.put(value)

    def end(self) -> None:
        """Take the end of the answer."""
        self.streamer.end()


class Generations(GenerateManager):
    """transformers' generation, whose answers are trimmed; stop strings need a tokenizer and no processor.

    Attributes:
        ids: tokens of the answer so far.
        ended: whether it ended by itself, or by a stop text; known when it is whole.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[int] = []
        self.ended: Callable[[], bool] = lambda: True

    def of_request(self) -> Generations:
        """Return what writes the answer of one request, in the same thread as all others."""
        other = copy.copy(self)
        other.ids = []
        return other

    def generate_streaming(self, model: Any, processor: Any, *args: Any, **kwargs: Any) -> Any:
        """The queue that pieces come by, and the streamer."""
        noted, stops = self._noted(model, processor.tokenizer, *args)
        queue, streamer = super().generate_streaming(noted, processor.tokenizer, *args, **kwargs)
        return Trimmed(queue, stops), streamer

    async def generate_non_streaming(self, model: Any, processor: Any, *args: Any, **kwargs: Any) -> Any:
        """The answer, the length of the prompt, the ids of the answer."""
        noted, stops = self._noted(model, processor.tokenizer, *args)
        text, *rest = await super().generate_non_streaming(noted, processor.tokenizer, *args, **kwargs)
        return (before_stop(text.strip(), stops).rstrip("\n"), *rest)

    def _noted(self, model: Any, tokenizer: Any, inputs: Any, settings: Any) -> tuple[Any, list[str]]:
        """The model that notes what it writes, and the stop texts; says how it is found out what ended the answer."""
        given, stops = settings.eos_token_id, settings.stop_strings or []
        aside = settings.__dict__.pop("kosmos_aside", {})
        ends = [given] if isinstance(given, int) else given or []
        stops = [stops] if isinstance(stops, str) else stops

        def ended() -> bool:
            if len(self.ids) < settings.max_new_tokens or self.ids[-1] in ends:
                return True
            text = tokenizer.decode(self.ids, skip_special_tokens=True)
            return any(stop in text for stop in stops)

        self.ended = ended
        return Noted(model, self.ids, aside), stops


def finished(chunk: dict[str, Any]) -> dict[str, Any]:
    """Return a chat completion, or a chunk of one, whose answer ended by itself.

    transformers says ``length`` of each that has as many tokens as it may have, its end among them.
    """
    choices = [
        {**one, "finish_reason": "stop"} if one.get("finish_reason") == "length" else one for one in chunk["choices"]
    ]
    return {**chunk, "choices": choices}


def cut(event: dict[str, Any]) -> dict[str, Any]:
    """Return a response, or the event of a stream that ends one, as OpenAI has them where the limit cut the answer."""
    if event.get("object") == "response":
        output = [{**one, "status": "incomplete"} for one in event["output"]]
        return {**event, **CUT, "output": output}
    if event["type"] == "response.output_item.done":
        return {**event, "item": {**event["item"], "status": "incomplete"}}
    if event["type"] == "response.completed":
        return {**event, "type": "response.incomplete", "response": cut(event["response"])}
    return event


def told(body: Mapping[str, Any]) -> Change:
    """Return what writes into an answer what OpenAI's tell of their request ``body``."""
    tier = {"service_tier": "default"} if body.get("service_tier") else {}
    again = {name: body[name] for name in TOLD if body.get(name) is not None} | tier

    def tell(event: dict[str, Any]) -> dict[str, Any]:
        if event.get("object") == "response":
            return {**event, **again}
        if "response" in event:
            return {**event, "response": {**event["response"], **again}}
        return {**event, **tier} if "choices" in event else event

    return tell


def without_usage(chunk: dict[str, Any]) -> dict[str, Any]:
    """Return a chunk of a stream that does not tell numbers of tokens."""
    return {name: value for name, value in chunk.items() if name != "usage"}


def usage_alone(chunk: dict[str, Any]) -> dict[str, Any] | None:
    """Return the chunk that ends a stream whose client asked for its numbers of tokens; None where there are none."""
    return {**chunk, "choices": []} if chunk.get("usage") else None


def changed(response: JSONResponse, change: Change) -> JSONResponse:
    """Return a response of the server with a changed body."""
    return JSONResponse(change(json.loads(bytes(response.body))), status_code=response.status_code)


async def changed_events(
    events: Any, change: Change, applies: Callable[[], bool] = lambda: True, behind: Extra = lambda _: None
) -> AsyncIterator[str]:
    """Yield the events of a stream, changed where ``applies`` says so when they come; ``behind`` gives further ones."""
    async with aclosing(events):  # who leaves a stream early ends the model's answer too
        async for text in events:
            before, failed, rest = text.partition(FAILED)  # transformers' form, which no client reads
            if failed:
                error = openai_error(rest.rstrip().removesuffix('"}'), "server_error")
                text = f"{before}{_data({'error': error})}\n\n"
            yield "\n".join(_changed_event(line, change, behind) for line in text.split("\n")) if applies() else text


def openai_error(message: str, kind: str) -> dict[str, Any]:
    """Return an error in OpenAI's form."""
    return {"message": message, "type": kind, "param": None, "code": None}


def _changed_event(line: str, change: Change, behind: Extra) -> str:
    head, _, body = line.partition("data: ")
    if head or not body.startswith("{") or body.startswith('{"error"'):
        return line
    event = json.loads(body)
    return "\n\n".join(_data(one) for one in (change(event), behind(event)) if one is not None)


def _data(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event, ensure_ascii=False, separators=(',', ':'))}"
