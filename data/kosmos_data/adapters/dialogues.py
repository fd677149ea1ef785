"""Dialogues and instructions as people have them: OpenAI's messages, ShareGPT, LLaVA, Cauldron, Alpaca, FLAN.

Each format is a layout of a record's fields; in which kind of file it lies makes no difference: a JSON list, JSON
lines (plain or packed), parquet, or the folder that ``datasets`` saves. How a dialogue becomes a document stands in
``_dialogue.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeAlias

from .. import errors
from ..document import PICTURES, Document, Text
from ..errors import BadSample, Tally
from ._dialogue import Said, documents, read_message, read_picture, read_pictures, say
from ._files import LINES, caption, key_of, read_list, records
from .folders import CAPTIONS

Record: TypeAlias = dict[str, Any]
Layout: TypeAlias = Callable[[Record, Path], list[Said]]

_PAIRS = (
    ("inputs", "targets"),
    ("inputs_pretokenized", "targets_pretokenized"),
    ("prompt", "completion"),
    ("question", "answer"),
    ("input", "output"),
    ("source", "target"),
)
_DIALOGUES = ("messages", "conversations", "texts", "instruction")
_PICTURES = ("image", *PICTURES)
_KEPT = ("id", "source", "url")  # of a record, as meta


def messages(source: Path, images: Path, tally: Tally, turns: int | None = None) -> Iterator[Document]:
    """``{"messages": [{"role": "user", "content": "…"}, …]}``: OpenAI's, and TRL's with ``images`` and ``prompt``.

    A content is text or a list of parts; pictures are in the parts, or in ``images`` in the order of the parts
    without one and of the marks ``<image>``. Without either they stand before the first question.
    """
    yield from _convert(_talk, source, images, tally, turns)


def sharegpt(source: Path, images: Path, tally: Tally, turns: int | None = None) -> Iterator[Document]:
    """``{"conversations": [{"from": "human", "value": "<image>\\n…"}, {"from": "gpt", …}], "image": …}``; LLaVA's too.

    Each picture has its mark ``<image>``.
    """
    yield from _convert(_talk, source, images, tally, turns, unmarked=False)


def cauldron(source: Path, images: Path, tally: Tally, turns: int | None = None) -> Iterator[Document]:
    """``{"images": [{"bytes": …}], "texts": [{"user": "…", "assistant": "…"}, …]}``: The Cauldron and FineVision."""
    yield from _convert(_texts, source, images, tally, turns)


def alpaca(source: Path, images: Path, tally: Tally, turns: int | None = None) -> Iterator[Document]:
    """``{"instruction": "…", "input": "…", "output": "…"}``, with ``system`` and ``history`` if there are any.

    Dolly's ``context`` and ``response`` are read too.
    """
    yield from _convert(_instruction, source, images, tally, turns)


def flan(source: Path, images: Path, tally: Tally, turns: int | None = None) -> Iterator[Document]:
    """``{"inputs": "…", "targets": "…"}`` and other pairs: prompt and completion, question and answer …"""
    yield from _convert(_pair, source, images, tally, turns)


def parquet(
    source: Path, images: Path, tally: Tally, turns: int | None = None, field: str | None = None
) -> Iterator[Document]:
    """Any of these layouts, by the fields of each record, or a picture and its caption.

    A caption is in the first of the columns that the format ``csv`` knows, in ``txt``, or in ``field``.
    """

    def make(key: str, record: Record) -> Iterator[Document]:
        text = _caption(record, field)
        if text is None:
            yield from _document(_any, key, record, images, tally, True, turns)
            return
        pictures = [read_picture(record[name], images) for name in _PICTURES if record.get(name)]
        if len(pictures) != 1:
            raise BadSample(errors.IMAGE_MISSING, f"{len(pictures)} pictures for a caption")
        yield Document(key, [pictures[0], Text(caption(text))], _meta(record))

    for key, record in _records(source, tally):
        yield from tally.usable(key, make, key, record)


def _caption(record: Record, field: str | None) -> str | None:
    """The text of a record that is a picture and its caption; None where it is a dialogue, or neither."""
    if not any(name in record for name in _PICTURES) or any(record.get(name) for name in _DIALOGUES):
        return None
    names = (field,) if field else (*CAPTIONS, "txt")
    asked = not field and any(isinstance(record.get(one), str) and other in record for one, other in _PAIRS)
    there = [record[name] for name in names if name in record and not asked]
    found = next((text for text in there if isinstance(text, str)), None)
    return "" if found is None and None in there else found  # a caption that is null is one of nothing


def _convert(
    layout: Layout, source: Path, images: Path, tally: Tally, turns: int | None, unmarked: bool = True
) -> Iterator[Document]:
    if turns is not None and turns < 1:
        raise ValueError(f"turns={turns}: a dialogue has at least one")
    for key, record in _records(source, tally):
        yield from tally.usable(key, _document, layout, key, record, images, tally, unmarked, turns)


def _document(
    layout: Layout, key: str, record: Record, images: Path, tally: Tally, unmarked: bool, turns: int | None
) -> Iterator[Document]:
    said = layout(record, images)
    for place, segments in documents(key, said, read_pictures(record, images), tally, unmarked, turns):
        yield Document(place, segments, _meta(record))


def _meta(record: Record) -> Record:
    return {name: record[name] for name in _KEPT if isinstance(record.get(name), str | int)}


def _records(source: Path, tally: Tally) -> Iterator[tuple[str, Any]]:
    """(key, record) of a JSON list, or of what else :func:`records` reads."""
    if source.is_dir() or any(fnmatchcase(source.name.lower(), pattern) for pattern in LINES):
        yield from records(source, tally)
        return
    for number, record in enumerate(read_list(source, tally)):
        key = f"{key_of(source.name.split('.')[0])}-{number:08d}"
        if isinstance(record, dict):
            yield key, record
        else:
            tally.count(errors.JSON, f"{key}: a {type(record).__name__}, not an object")


def _talk(record: Record, folder: Path) -> list[Said]:
    given = record.get("messages") or record.get("conversations")
    if not given and isinstance(record.get("prompt"), list):
        given = [*record["prompt"], *(record.get("completion") or [])]
    if not given:
        raise _without("messages", "conversations", record=record)
    return [*_system(record), *(read_message(message, folder) for message in given)]


def _texts(record: Record, folder: Path) -> list[Said]:
    if not record.get("texts"):
        raise _without("texts", record=record)
    return [say(role, [one[role] or ""]) for one in record["texts"] for role in ("user", "assistant")]


def _instruction(record: Record, folder: Path) -> list[Said]:
    if not record.get("instruction"):
        raise _without("instruction", record=record)
    given = record.get("input") or record.get("context") or ""
    question = f"{record['instruction']}\n{given}" if given.strip() else record["instruction"]
    answer = record["output"] if record.get("output") is not None else record["response"]
    pairs = [*(record.get("history") or []), (question, answer)]
    return [*_system(record), *(one for pair in pairs for one in _turn(*pair))]


def _pair(record: Record, folder: Path) -> list[Said]:
    for asked, answered in _PAIRS:
        if isinstance(record.get(asked), str) and answered in record:
            return [*_system(record), *_turn(record[asked], record[answered])]
    raise _without(*(" and ".join(pair) for pair in _PAIRS), record=record)


def _any(record: Record, folder: Path) -> list[Said]:
    if record.get("messages") or record.get("conversations") or isinstance(record.get("prompt"), list):
        return _talk(record, folder)
    if record.get("texts"):
        return _texts(record, folder)
    if record.get("instruction"):
        return _instruction(record, folder)
    if any(isinstance(record.get(asked), str) and answered in record for asked, answered in _PAIRS):
        return _pair(record, folder)
    raise _without("dialogue, pair of question and answer, or image with a text or caption", record=record)


def _turn(question: str, answer: str) -> list[Said]:
    if not isinstance(question, str) or not isinstance(answer, str):
        raise TypeError(f"question and answer are {question!r} and {answer!r}, not texts")
    return [say("user", [question]), say("assistant", [answer])]


def _system(record: Record) -> list[Said]:
    given = record.get("system")
    return [Said("system", [given])] if isinstance(given, str) and given else []


def _without(*names: str, record: Record) -> BadSample:
    there = ", ".join(map(str, list(record)[:6])) or "none"
    return BadSample(errors.NO_CONVERSATION, f"no {' or '.join(names)}; its fields are {there}")
