"""In what order the messages of a conversation may stand: one rule for every prompt, and for dialogues that are learnt.

* Neighbours of one role are one message, a space between their texts: who shows a picture and then asks, asks once.
* The system speaks before anybody else; what it says empty is not said.
* Somebody asks before the model answers, and in words: a picture alone is no question, a span may be one.
* An empty answer is one, as a model may write nothing; a dialogue to learn from must have more.

A prompt that breaks it is refused. An import counts such a dialogue and leaves it out, or the part that breaks it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from .segments import WRITTEN

ROLES = ("system", "developer", "user", "assistant")
NO_WORDS = "the question is empty; ask something, for instance what is in the picture"


def runs(roles: Sequence[str]) -> list[list[int]]:
    """Return the places of the messages that are one message, in order.

    Args:
        roles: of :data:`ROLES`, one for each message.

    Raises:
        ValueError: the system speaks behind a question or an answer, or an answer is first.
    """
    kinds = ["system" if role == "developer" else role for role in roles]
    found = [[place for place, _ in run] for _, run in groupby(enumerate(kinds), key=lambda one: one[1])]
    speakers = [kinds[places[0]] for places in found]
    if "system" in speakers[1:]:
        place = found[speakers.index("system", 1)][0]
        raise ValueError(f"message {place + 1} is the {roles[place]}'s: it speaks in front of the conversation only")
    if "assistant" in speakers and "user" not in speakers[: speakers.index("assistant")]:
        raise ValueError("an answer is first, and nothing asked for it; a conversation begins with a question")
    return found


def joined(contents: Sequence[Sequence[Any]], text: Callable[[Any], str | None], space: Any) -> list[Any]:
    """Return the parts of several messages as those of one.

    Args:
        contents: the parts of each message.
        text: gives the text of a part, None if it is none.
        space: the part that stands where a text meets a text.
    """
    whole: list[Any] = []
    for content in contents:
        parts = [part for part in content if text(part) != ""]
        before, behind = (text(side[place]) if side else None for side, place in ((whole, -1), (parts, 0)))
        if before is not None and behind is not None and not (before[-1].isspace() or behind[0].isspace()):
            whole.append(space)
        whole += parts
    return whole


def as_turns(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a chat template's messages by the rule: neighbours of one role as one message, nothing around its text.

    Args:
        messages: each with a role of :data:`ROLES`, and as content a text or a list of parts that it may hold.

    Raises:
        ValueError: they stand in another order.
    """
    turns = [_one([messages[place] for place in places]) for places in runs([one["role"] for one in messages])]
    return [turn for turn in turns if turn["role"] in ("user", "assistant") or turn["content"]]


def refuse_empty(turns: Sequence[dict[str, Any]]) -> None:
    """ValueError where nobody says anything, or a question has no words."""
    if not turns:
        raise ValueError(
            "the conversation has no message, or only an empty one of the system; it begins with a question"
        )
    if any(turn["role"] == "user" and not _has_words(turn["content"]) for turn in turns):
        raise ValueError(NO_WORDS)


def _one(messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One message of neighbours; a content stays a text where it was one in all of them."""
    first, contents = messages[0], [message["content"] for message in messages]
    if all(isinstance(content, str) for content in contents):
        return {**first, "content": " ".join(filter(None, (content.strip() for content in contents)))}
    parts = [[_text_part(one)] if isinstance(one, str) else list(one) for one in contents]
    return {**first, "content": _stripped(joined(parts, text_of, _text_part(" ")))}


def _stripped(parts: list[Any]) -> list[Any]:
    """The parts without white space in front of the first text and behind the last."""
    for place, strip in ((0, str.lstrip), (-1, str.rstrip)):
        while parts and (text := text_of(parts[place])) is not None:
            parts[place] = {**parts[place], "text": strip(text)}
            if parts[place]["text"]:
                break
            del parts[place]
    return parts


def refuse_calls(message: dict[str, Any]) -> None:
    """ValueError where a message calls tools: no prompt has that, and its text alone would be something else."""
    if called := [name for name in ("tool_calls", "function_call") if message.get(name)]:
        raise ValueError(f"a message with {called[0]}: the model calls no tools")


def text_of(part: Any) -> str | None:
    """Return the text of a message's part; None of any other part."""
    plain = isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
    return part["text"] if plain else None


def _has_words(content: Any) -> bool:
    """Whether there is text, for the decoder or, as a span, for the text encoder."""
    if isinstance(content, str):
        return bool(content.strip())
    return any(part.get("type") in WRITTEN and part["text"].strip() for part in content)


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}
