"""A list in a JSON file, one entry after the other: a file of many gigabytes takes the memory of its largest entry."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from json import JSONDecodeError
from pathlib import Path
from typing import Any, TextIO

from ._packed import open_text

_CHUNK = 1 << 20  # characters that are read at a time
_LONGEST_ENTRY = 64 << 20
_LARGE = 8 << 20
_CUT = 3  # so many characters behind a number tell that it does not go on: 1.5, and e- of 1.5e-7
_MOST_VALUES = 2 << 20
_SPACE = re.compile(r"[ \t\n\r]*")


def entries(path: Path, key: str | None = None) -> Iterator[Any]:
    """The entries of a JSON list, or of the list under ``key`` of an object; a byte order mark may stand before it.

    Bytes that are not UTF-8 become lone surrogates.

    Raises:
        ValueError: another value than such a list (at once), or malformed JSON (where it is); names the file.
    """
    with open_text(path) as file:
        text = _Text(file)
        try:
            yield from _entries(text, key)
        except JSONDecodeError as error:
            where = f"character {text.passed + error.pos}"
            raise ValueError(f"{path}: not valid JSON: {error.msg}, at {where}") from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not valid JSON: {error}") from error
        except _Other as error:
            wanted = "a list" if key is None else f'an object with a list under "{key}"'
            raise ValueError(f"{path}: {wanted} is expected; it holds {error}") from None


def parse(text: str) -> Any:
    """The value of a JSON text; ValueError or RecursionError where it is none, or one of millions of lists."""
    refuse_millions(text)
    return json.loads(text)


def refuse_millions(text: str) -> None:
    """ValueError where a text holds more lists and objects than memory: 64 MB of ``[],`` are a gigabyte of lists."""
    if len(text) > _LARGE and text.count("[") + text.count("{") > _MOST_VALUES:
        raise ValueError(f"more than {_MOST_VALUES} lists and objects in one record")


class _Other(Exception):  # noqa: N818 - what the file holds instead of the list
    pass


class _Text:
    """A text that is read as far as it is needed; ``passed`` characters of it are behind ``held``."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.held, self.at, self.passed = file, "", 0, 0
        self.ended = False

    def more(self) -> None:
        """Read as much again as is held, so that a long entry is not parsed anew for each chunk of it."""
        self.held, self.passed, self.at = self.held[self.at :], self.passed + self.at, 0
        new = self.file.read(max(_CHUNK, len(self.held)))
        self.held, self.ended = self.held + new, not new

    def next(self) -> str:
        """The next character that is no white space, which stays; "" at the end."""
        while True:
            self.at = _SPACE.match(self.held, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.held) or self.ended:
                return self.held[self.at : self.at + 1]
            self.more()

    def take(self, wanted: str) -> bool:
        """Whether the next character is ``wanted``, which is passed over then."""
        found = self.next() == wanted
        self.at += found
        return found

    def demand(self, wanted: str) -> None:
        if not self.take(wanted):
            raise JSONDecodeError(f"Expecting {wanted!r}", self.held, self.at)

    def value(self) -> Any:
        """The next value, whole."""
        self.next()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.held, self.at)
            except JSONDecodeError:
                if self.ended or len(self.held) - self.at >= _LONGEST_ENTRY:
                    raise
            else:
                if end + _CUT <= len(self.held) or self.ended:
                    self.at = end
                    return value
            self.more()
            refuse_millions(self.held)


_DECODER = json.JSONDecoder()
_KINDS = {str: "a text", bool: "true or false", type(None): "null"}


def _entries(text: _Text, key: str | None) -> Iterator[Any]:
    if text.take("["):
        if key is not None:
            raise _Other("a list")
        yield from _rest_of_list(text)
    elif text.take("{"):
        yield from _under(text, key)
        return
    else:
        raise _Other(_KINDS.get(type(text.value()), "a number"))
    if text.next():
        raise JSONDecodeError("Extra data", text.held, text.at)


def _rest_of_list(text: _Text) -> Iterator[Any]:
    if text.take("]"):
        return
    yield text.value()
    while not text.take("]"):
        text.demand(",")
        yield text.value()


def _under(text: _Text, key: str | None) -> Iterator[Any]:
    """The entries of the list under ``key`` of an object that has begun; what stands before it is passed over."""
    names: list[str] = []
    more = not text.take("}")
    while more:
        if text.next() != '"':
            raise JSONDecodeError("Expecting a name in double quotes", text.held, text.at)
        names.append(text.value())
        text.demand(":")
        if text.take("["):
            found = _rest_of_list(text)
            if names[-1] == key:
                yield from found
                return
            for _ in found:
                pass
        else:
            text.value()
        more = text.take(",")
        if not more:
            text.demand("}")
    raise _Other(f"an object with {', '.join(names[:6])}")
