"""What a request to the server may ask: each field is looked at before the model sees any of it.

transformers' server reads some numbers as they come, leaves out others without a word, and fails on the rest in the
middle of an answer. Here a field is either one that changes the answer as OpenAI's reference says, or refused by name.
"""

from __future__ import annotations

import math
from typing import Any

# What transformers' server would ignore, or what would let a request rewrite the prompt or the rules of writing.
REFUSED = (
    "audio", "background", "chat_template_kwargs", "function_call", "functions", "generation_config", "include",
    "logprobs", "modalities", "prediction", "presence_penalty", "previous_response_id", "prompt", "tools",
    "top_logprobs", "web_search_options",
)  # fmt: skip
LENGTHS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
RANGES = {"temperature": (0, 2), "top_p": (0, 1), "frequency_penalty": (0, 2)}
MOST_STOPS = 16


def checked(body: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    """The request without fields that say nothing, its numbers as transformers reads them.

    Args:
        body: the request's JSON object.
        vocabulary: number of the model's tokens.

    Raises:
        ValueError: a field that is not served, or a value that is none of its field's.
    """
    for field in REFUSED:
        if body.get(field):
            raise ValueError(f"{field} is not served; a request holds messages, temperature, top_p, stop, seed …")
    asked = {name: value for name, value in body.items() if value is not None}
    if asked.get("n", 1) != 1:
        raise ValueError(f"n={_shown(asked['n'])}: a question has one answer")
    if asked.get("tool_choice", "none") not in ("none", "auto"):
        raise ValueError("tool_choice is not served: the model calls no tools")
    _refuse_other_formats(asked)
    for name, (low, high) in RANGES.items():
        if name in asked:
            asked[name] = _number(name, asked[name], low, high)
    for name in LENGTHS:
        if name in asked:
            asked[name] = _whole(name, asked[name], 1)
    if "seed" in asked:
        asked["seed"] = _whole("seed", asked["seed"], -(2**63), 2**63 - 1)
    for name, kind, said in (("stream", bool, "true or false"), ("instructions", str, "text")):
        if not isinstance(asked.get(name, kind()), kind):
            raise ValueError(f"{name} is {said}, not {_shown(asked[name])}")
    asked |= {"stop": _stops(asked.get("stop")), "logit_bias": _biases(asked.get("logit_bias"), vocabulary)}
    return {name: value for name, value in asked.items() if value is not None}


def length(asked: dict[str, Any], longest: int) -> int:
    """How many tokens an answer may have: what a checked request asks for, no more than the server allows."""
    return min([longest, *(asked[name] for name in LENGTHS if name in asked)])


def _refuse_other_formats(asked: dict[str, Any]) -> None:
    """Chat completions call it ``response_format``, responses ``text.format``."""
    said = asked.get("text", {})
    given = {"response_format": asked.get("response_format"), "text": said if isinstance(said, str) else None}
    given["text.format"] = said.get("format") if isinstance(said, dict) else None
    for name, form in given.items():
        kind = form.get("type") if isinstance(form, dict) else form
        if kind not in (None, "text"):
            raise ValueError(f"{name}={_shown(kind)}: answers are text")


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
