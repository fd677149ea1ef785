"""What a request to the server may ask: each field is looked at before the model sees any of it.

transformers' server reads some numbers as they come, leaves out others without a word, and fails on the rest in the
middle of an answer. Here every field of OpenAI's two requests is one that changes the answer as OpenAI's reference
says, or asks for what an answer is anyway, or is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from .suggest import suggest

BOTH = frozenset({"model", "seed", "stream", "stream_options", "temperature", "top_p"})
CHAT = BOTH | {
    "frequency_penalty", "logit_bias", "max_completion_tokens", "max_tokens", "messages", "presence_penalty",
    "response_format", "stop",
}  # fmt: skip
RESPONSES = BOTH | {"input", "instructions", "max_output_tokens", "metadata", "text"}

# Fields that say who asks: they change no answer of OpenAI's either.
HINTS = ("prompt_cache_key", "safety_identifier", "user")

_TOOLS, _STORED = "the model calls no tools", "nothing is stored, each request holds its whole conversation"
_LOGPROBS, _TEXT, _REASONS = "log probabilities are not told", "answers are text", "the model writes no reasoning"
_CACHE, _WAITS = "prompts are not kept", "a request waits for its answer"
# Of these fields the values that ask for what an answer is anyway, and why no other is served.
ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "access_programs": ((), "there are none"),
    "audio": ((), _TEXT),
    "background": ((False,), _WAITS),
    "background_options": ((), _WAITS),
    "context_management": (([],), "a conversation that is too long is refused"),
    "conversation": ((), _STORED),
    "function_call": (("none", "auto"), _TOOLS),
    "functions": (([],), _TOOLS),
    "image": ((), "pictures are read at the size of the model"),
    "include": (([],), "an answer holds its text alone"),
    "logprobs": ((False,), _LOGPROBS),
    "max_tool_calls": ((), _TOOLS),
    "modalities": ((["text"],), _TEXT),
    "moderation": ((), "nothing is moderated"),
    "n": ((1,), "a question has one answer"),
    "parallel_tool_calls": ((False, True), _TOOLS),  # whether several at a time: there are none
    "prediction": ((), "no text is known beforehand"),
    "previous_response_id": ((), _STORED),
    "prompt": ((), _STORED),
    "prompt_cache_options": ((), _CACHE),
    "prompt_cache_retention": ((), _CACHE),
    "reasoning": (({}, {"effort": "none"}), _REASONS),
    "reasoning_effort": (("none",), _REASONS),
    "service_tier": (("auto", "default"), "there is one tier, 'default'"),
    "store": ((False,), _STORED),
    "tool_choice": (("none", "auto"), _TOOLS),
    "tools": (([],), _TOOLS),
    "top_logprobs": ((0,), _LOGPROBS),
    "truncation": (("disabled",), "a conversation that is too long is refused"),
    "verbosity": (("medium",), "answers are as long as the model was trained to write them"),
    "web_search_options": ((), "the web is not searched"),
}
LENGTHS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
RANGES = {"temperature": (0, 2), "top_p": (0, 1), "frequency_penalty": (-2, 2), "presence_penalty": (-2, 2)}
MOST_STOPS = 16


def checked(body: dict[str, Any], vocabulary: int, fields: frozenset[str]) -> dict[str, Any]:
    """Return the request without fields that change nothing, its numbers as transformers reads them.

    Args:
        body: the request's JSON object.
        vocabulary: number of the model's tokens.
        fields: of :data:`CHAT` or :data:`RESPONSES`.

    Raises:
        ValueError: a field that is not served, or a value that is none of its field's.
    """
    asked = _served(body, fields)
    for name, (low, high) in RANGES.items():
        if name in asked:
            asked[name] = _number(name, asked[name], low, high)
    for name in LENGTHS:
        if name in asked:
            asked[name] = _whole(name, asked[name], 1)
    if "seed" in asked:
        asked["seed"] = _whole("seed", asked["seed"], -(2**63), 2**63 - 1)
    for name, kind, said in (("model", str, "text"), ("stream", bool, "true or false"), ("instructions", str, "text")):
        _refuse_other_kind(name, asked.get(name, kind()), kind, said)
    for name, read in READERS.items():
        if name in asked:
            asked[name] = read(asked[name])
    asked["logit_bias"] = _biases(asked.get("logit_bias"), vocabulary)
    if "stream_options" in asked and not asked.get("stream"):
        raise ValueError("stream_options are options of a stream: leave them out, or ask with stream true")
    return {name: value for name, value in asked.items() if value is not None}


def _served(body: dict[str, Any], fields: frozenset[str]) -> dict[str, Any]:
    """The fields that change an answer; of the others it is made sure that they do not."""
    asked = {}
    for name, value in body.items():
        if value is None:
            continue
        if name in HINTS:
            _refuse_other_kind(name, value, str, "text")
        elif name in ONLY:
            _refuse_other(name, value)
        elif name in fields:
            asked[name] = value
        else:
            raise ValueError(f"{name} is not served; {suggest(name, sorted(fields), 'a request may hold')}")
    return asked


def length(asked: dict[str, Any], longest: int) -> int:
    """Return how many tokens an answer may have: what a checked request asks for, no more than the server allows."""
    return min([longest, *(asked[name] for name in LENGTHS if name in asked)])


def refuse_further(given: Mapping[str, Any], known: tuple[str, ...], what: str) -> None:
    """ValueError where a message, or a part of one, says something that no prompt has; empty fields say nothing."""
    for name, value in given.items():
        if name not in known and value not in (None, "", [], {}):
            raise ValueError(
                f"{what} with {name}={_shown(value)}: the model would not read it; it has {', '.join(known)}"
            )


def _refuse_other(name: str, value: Any, within: str = "") -> None:
    allowed, why = ONLY[name]
    if not any(type(value) is type(one) and value == one for one in allowed):  # True is no 1
        instead = " or ".join(map(repr, allowed))
        raise ValueError(
            f"{within}{name}={_shown(value)} is not served: {why}; leave it out"
            + (f", or send {instead}" if allowed else "")
        )


def _refuse_other_kind(name: str, value: Any, kind: type, said: str) -> None:
    if not isinstance(value, kind):
        raise ValueError(f"{name} is {said}, not {_shown(value)}")


def _refuse_other_format(name: str, form: Any) -> None:
    kind = form.get("type") if isinstance(form, dict) else form
    if kind not in (None, "text"):
        raise ValueError(f"{name}={_shown(kind)}: answers are text")


def _response_format(given: Any) -> None:
    """Chat completions' name of the format; text changes nothing."""
    _refuse_other_format("response_format", given)


def _text(given: Any) -> None:
    """What responses say of the answer's text: its format, and how much of it."""
    _refuse_other_kind("text", given, dict, "an object of format and verbosity")
    refuse_further(given, ("format", "verbosity"), "text")
    _refuse_other_format("text.format", given.get("format"))
    if given.get("verbosity") is not None:
        _refuse_other("verbosity", given["verbosity"], "text.")


def _stream_options(given: Any) -> dict[str, bool]:
    """Whether a stream ends with its numbers of tokens; padding against eavesdroppers is not sent."""
    _refuse_other_kind("stream_options", given, dict, "an object")
    refuse_further(given, ("include_usage", "include_obfuscation"), "stream_options")
    for name in given:
        _refuse_other_kind(f"stream_options.{name}", given[name] or False, bool, "true or false")
    if given.get("include_obfuscation"):
        raise ValueError("stream_options.include_obfuscation is not served: pieces are not padded; leave it out")
    return given


def _metadata(given: Any) -> dict[str, str]:
    """Up to 16 texts by name, which the response tells again."""
    kept = isinstance(given, dict) and len(given) <= 16 and all(len(name) <= 64 for name in given)
    if not kept or not all(isinstance(value, str) and len(value) <= 512 for value in given.values()):
        raise ValueError(f"metadata is at most 16 texts of 512 letters by names of 64, not {_shown(given)}")
    return given


def _number(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{name} is a number from {low} to {high}, not {_shown(value)}")
    return float(value)


def _whole(name: str, value: Any, low: int, high: int | None = None) -> int:
    number = int(value) if isinstance(value, float) and math.isfinite(value) and value == int(value) else value
    if isinstance(number, bool) or not isinstance(number, int) or number < low or (high is not None and number > high):
        most = "or more" if high is None else f"to {high}"
        raise ValueError(f"{name} is a whole number, {low} {most}, not {_shown(value)}")
    return number


def _stops(given: Any) -> list[str] | None:
    """The texts that end an answer; an empty one would end it before its first token."""
    stops = [given] if isinstance(given, str) else given or []
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise ValueError(f"stop is a text or a list of texts, none of them empty, not {_shown(given)}")
    if len(stops) > MOST_STOPS:
        raise ValueError(f"stop has {len(stops)} texts, at most {MOST_STOPS} are looked for")
    return stops or None


def _biases(given: Any, vocabulary: int) -> dict[str, float] | None:
    if not isinstance(given or {}, dict):
        raise ValueError(f"logit_bias is an object of token ids and numbers, not {_shown(given)}")
    for token in given or {}:
        if not (token.isascii() and token.isdecimal() and int(token) < vocabulary):
            raise ValueError(f"logit_bias: {_shown(token)} is no id of a token; there are 0 to {vocabulary - 1}")
    biases = {token: _number(f"logit_bias of {token}", value, -100, 100) for token, value in (given or {}).items()}
    return biases or None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


READERS: dict[str, Callable[[Any], Any]] = {
    "metadata": _metadata,
    "response_format": _response_format,
    "stop": _stops,
    "stream_options": _stream_options,
    "text": _text,
}
