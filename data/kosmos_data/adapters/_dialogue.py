"""What people's dialogues have in common: messages with roles and pictures, which become one document or several.

A layout (dialogues.py) reads a record as a list of :class:`Said`; here they become questions that are not supervised
and answers that are. The ids are those of the same conversation in a chat (``KosmosProcessor``'s chat template).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeAlias

from kosmos.turn_order import joined, refuse_calls, runs

from .. import errors
from ..document import Image, Segment, Text, is_blank
from ..errors import BadSample, Tally
from ..images import open_header
from ..turns import answered, asked
from ..web.page import url_name
from ._files import caption, image

MARK = "<image>"
ROLES = {"system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant"}
ROLES |= dict.fromkeys(("gpt", "chatgpt", "bard", "bing", "model"), "assistant")
_TEXTS = ("text", "input_text", "output_text")
_PICTURES = ("image", "image_url", "input_image")
_PLACES = ("image_url", "image", "url", "path", "bytes")  # where a part has its picture

Part: TypeAlias = str | Image | None
"""A text, a picture, or the next picture of the record (None)."""
Exchange: TypeAlias = tuple[list[Part], str]
"""A question and its answer."""


@dataclass
class Said:
    """One message: ``role`` is system, user or assistant; ``content`` its parts in reading order."""

    role: str
    content: list[Part]


def read_message(message: dict[str, Any], folder: Path) -> Said:
    """Read ``{"role": …, "content": text or parts}``, or ShareGPT's ``{"from": …, "value": text}``.

    Raises:
        BadSample: no role, or one that no document has (tool, function …); a picture that cannot be had.
        ValueError: a part of another kind, a picture in an answer, or a call of a tool.
    """
    named = message.get("role") or message.get("from")
    if not isinstance(named, str) or named not in ROLES:
        raise BadSample(errors.ROLE, "a message without role" if named is None else f"role {named!r}")
    refuse_calls(message)
    given = message["content"] if "content" in message else message["value"]
    return say(ROLES[named], [_read_part(part, folder) for part in _as_parts(given)])


def say(role: str, content: Sequence[Part]) -> Said:
    """Return what ``role`` says; the marks ``<image>`` of a user are places of pictures.

    Raises:
        ValueError: a picture that the user has not sent.
    """
    if role == "user":
        return Said(role, [one for part in content for one in _split_marks(part)])
    if not all(isinstance(part, str) for part in content):
        raise ValueError(f"a picture in a message of the {role}")
    return Said(role, list(content))


def read_pictures(record: dict[str, Any], folder: Path) -> list[Image]:
    """Read the pictures that a record has under ``images`` or ``image``: one or a list; names, bytes or addresses."""
    given = record.get("images")
    given = record.get("image") if given is None else given
    if given is None or given == "":
        return []
    return [read_picture(one, folder) for one in (given if isinstance(given, (list, tuple)) else [given])]


def read_picture(given: Any, folder: Path) -> Image:
    """Read one picture as ``datasets``, OpenAI or people write it.

    Args:
        given: bytes of a picture file, ``{"bytes": …, "path": …}``, ``{"url": …}``, a ``data:`` address, an address
            whose file ``kosmos data fetch`` left in ``folder``, or the name of a file below ``folder``.
        folder: of the picture files.

    Raises:
        BadSample: it is missing, empty or no picture.
        TypeError: it is something else.
    """
    if isinstance(given, dict):
        given = next((given[name] for name in ("bytes", "path", "url") if given.get(name) is not None), None)
    if isinstance(given, bytes):
        found = Image(given)
    elif not isinstance(given, str):
        raise TypeError(f"a picture is a {type(given).__name__}, not bytes or a name")
    elif given.startswith("data:"):
        found = Image(_decode_address(given))
    elif given.startswith(("http://", "https://")):
        found = _fetched(given, folder)
    else:
        found = image(folder, given.removeprefix("file://"))
    if not found.data:
        raise BadSample(errors.IMAGE_MISSING, "a picture of no bytes")
    open_header(found.data)
    return found


def documents(
    key: str, said: list[Said], pictures: list[Image], tally: Tally, unmarked: bool, turns: int | None
) -> Iterator[tuple[str, list[Segment]]]:
    """Make the documents of one dialogue, as (key, segments).

    Args:
        key: of the record.
        said: its messages, in the order that ``kosmos.turn_order`` says.
        pictures: of the record; they go to the marks ``<image>``, in order.
        tally: counts an answer in front that nothing asks for, and a question at the end that nothing answers.
        unmarked: where no message has a mark, the pictures stand before the first question.
        turns: a longer dialogue becomes several documents, each with the system's text and the pictures before it.

    Raises:
        BadSample: another order, an empty message, or pictures that do not fit the marks.
    """
    front, spoken = _in_turns(key, said, tally)
    _place(spoken, pictures, unmarked)
    exchanges = [_exchange(question, answer) for question, answer in zip(spoken[::2], spoken[1::2], strict=False)]
    system = "".join(str(part) for part in front).strip()
    opening: list[Segment] = [Text(f"{system}\n", supervised=False)] if system else []
    size = turns or len(exchanges)
    for start in range(0, len(exchanges), size):
        before = [part for question, _ in exchanges[:start] for part in question if isinstance(part, Image)]
        place = key if len(exchanges) <= size else f"{key}-{start // size}"
        yield place, [*opening, *before, *_written(exchanges[start : start + size])]


def _written(exchanges: Sequence[Exchange]) -> Iterator[Segment]:
    for place, (question, answer) in enumerate(exchanges):
        yield from asked([part for part in question if part is not None])
        yield answered(answer, last=place == len(exchanges) - 1)


def _in_turns(key: str, said: list[Said], tally: Tally) -> tuple[list[Part], list[Said]]:
    """What the system says; questions and answers in turns, without answers in front that nothing asked for."""
    first = next((place for place, one in enumerate(said) if one.role != "system"), len(said))
    unasked = list(takewhile(lambda one: one.role == "assistant", said[first:]))
    said = [*said[:first], *said[first + len(unasked) :]]
    try:
        places = runs([one.role for one in said])
    except ValueError as error:
        raise BadSample(errors.NO_CONVERSATION, str(error)) from error
    whole = [Said(said[run[0]].role, joined([said[place].content for place in run], _text, " ")) for run in places]
    front = whole.pop(0).content if whole and whole[0].role == "system" else []
    if len(whole) < 2:
        raise BadSample(errors.NO_CONVERSATION, "it has no question with an answer")
    if unasked:
        tally.count(errors.NO_QUESTION, key, record=False)
    if len(whole) % 2:
        tally.count(errors.NO_ANSWER, key, record=False)
    return front, whole


def _text(part: Part) -> str | None:
    return part if isinstance(part, str) else None


def _place(said: list[Said], pictures: list[Image], unmarked: bool) -> None:
    """Put the record's pictures where its marks are."""
    marks = sum(part is None for one in said for part in one.content)
    if marks > len(pictures):
        raise BadSample(errors.IMAGE_MISSING, f"{marks} marks {MARK}, {len(pictures)} images named")
    if marks < len(pictures) and (marks or not unmarked):
        raise BadSample(errors.NO_MARK, f"{marks} marks {MARK}, {len(pictures)} images named")
    rest = iter(pictures)
    for one in said:
        one.content = [next(rest) if part is None else part for part in one.content]
    first = next(one for one in said if one.role == "user")
    first.content = [*rest, *first.content]


def _exchange(question: Said, answer: Said) -> Exchange:
    if not any(isinstance(part, str) and not is_blank(part) for part in question.content):
        raise BadSample(errors.EMPTY, "a question without text")
    return question.content, caption("".join(str(part) for part in answer.content), "an answer without text")


def _as_parts(content: Any) -> list[Any]:
    """The parts of a content: OpenAI has none where an assistant only calls a tool."""
    if content is None:
        return [""]
    if not isinstance(content, (str, list, tuple)):
        raise TypeError(f"a content is {content!r}, not text or a list of parts")
    return [content] if isinstance(content, str) else list(content)


def _read_part(part: Any, folder: Path) -> Part:
    kind = part.get("type") if isinstance(part, dict) else "text"
    if kind in _PICTURES:
        given = next((part[name] for name in _PLACES if part.get(name) is not None), None)
        return None if given is None else read_picture(given, folder)
    text = part.get("text") if isinstance(part, dict) else part
    if kind not in _TEXTS or not isinstance(text, str):
        raise ValueError(f"a part of the type {kind!r}" + ("" if kind not in _TEXTS else " without text"))
    return text


def _split_marks(part: Part) -> list[Part]:
    """A text with its marks as parts of their own."""
    if not isinstance(part, str):
        return [part]
    first, *others = part.split(MARK)
    return [first, *(one for text in others for one in (None, text))]


def _decode_address(address: str) -> bytes:
    head, _, body = address.partition(",")
    if not head.endswith(";base64"):
        raise BadSample(errors.IMAGE_BROKEN, f"{address[:40]} is not data:image/…;base64,…")
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadSample(errors.IMAGE_BROKEN, f"{head}: {error}") from error


def _fetched(address: str, folder: Path) -> Image:
    try:
        return image(folder, url_name(address))
    except BadSample as error:
        raise BadSample(error.reason, f"{address}: not fetched (kosmos data fetch): {error.detail}") from error
