"""Segments of further modalities, sounds and others: how they are given to a processor, and how it reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from .modalities import MODALITIES, Modality
from .modality import Reader
from .segments import SEGMENTS


def further_modalities() -> dict[str, Modality]:
    """The modalities whose inputs a prompt marks and a call is given by name; the others have ways of their own."""
    return {name: modality for name, modality in MODALITIES.items() if modality.reader is not None}


def listed(given: Any) -> list[Any]:
    """One input or several; transformers hands on a batch as a list of lists."""
    if not isinstance(given, (list, tuple)):
        return [given]
    return [one for each in given for one in (each if isinstance(each, (list, tuple)) else [each])]


def make_reader(name: str, given: Reader | Mapping[str, Any]) -> Reader:
    """Return how segments of a further modality are read.

    Args:
        name: of the modality.
        given: a reader, or its fields; with ``encoder``, a folder, what was published there fills them.

    Raises:
        ValueError: there is no such modality, it has no such field, or a number of places below 1.
        FileNotFoundError: the folder does not say how its encoder reads.
    """
    kind = MODALITIES[name].reader if name in MODALITIES else None
    if kind is None:
        known = ", ".join(name for name, modality in MODALITIES.items() if modality.reader)
        raise ValueError(f"readers.{name}: there are readers of {known}")
    if isinstance(given, Reader):
        return given
    settings = dict(given)
    folder = settings.pop("encoder", None)
    try:
        made = kind(**settings) if folder is None else kind.of(Path(folder), **settings)
    except TypeError as error:
        names = ", ".join(["encoder", *(field.name for field in fields(kind))])
        raise ValueError(f"readers.{name} has the fields {names}; got {', '.join(given)}") from error
    if not isinstance(made.num_tokens, int) or made.num_tokens < 1:
        raise ValueError(f"readers.{name}.num_tokens is {made.num_tokens}: one takes at least one place")
    return made


def marks_of(modalities: Iterable[str]) -> list[str]:
    """Return the special tokens of further modalities, which a tokenizer needs to write them."""
    return [mark for name in modalities for mark in MODALITIES[name].marks if mark]


def as_segment(kind: str, content: Any) -> Any:
    """The segment that ``content`` is, or is the content of; ValueError where more than its content is needed."""
    made: Any = SEGMENTS[kind]
    if isinstance(content, made):
        return content
    try:
        return made(content)
    except TypeError as error:
        names = ", ".join(each.name for each in fields(made))
        raise ValueError(f"a {kind} is given as {made.__name__}({names}): {error}") from error


def segment_of(kind: str, part: Mapping[str, Any]) -> Any:
    """The segment of a message's part, which has its content under the part's type, ``url`` or ``path``."""
    content = next((part[key] for key in (kind, "path", "url") if part.get(key) is not None), None)
    if content is None:
        raise ValueError(f"a part of the type {kind!r} has no {kind!r}: {str(part)[:80]}")
    if isinstance(content, SEGMENTS[kind]):
        return content
    others = [each.name for each in fields(SEGMENTS[kind])[1:]]
    if missing := [name for name in others if name not in part]:
        raise ValueError(f"a part of the type {kind!r} has no {missing[0]!r}: {str(part)[:80]}")
    try:
        return SEGMENTS[kind](content, *(part[name] for name in others))
    except TypeError as error:
        raise ValueError(f"a part of the type {kind!r}: {error}") from error
