"""Dialogues of somebody in particular: PersonaChat as ParlAI has it, as JSON, and JSON lines of one's own.

A document is the persona of the one who answers, the end of its line, and the turns; what the other one says is the
question. Where the other one's persona is known, it stands before each of the questions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .. import errors
from ..document import Document, Persona, Segment, Text, is_blank
from ..errors import BadSample, Tally
from ..turns import turn
from ._files import begins_with_list, files, key_of, read_list, records
from ._packed import text_lines

KEY = "persona"
_LINE = re.compile(r"(\d+) (.*)", re.DOTALL)
_OWNERS = {"your persona: ": "own", "partner's persona: ": "other"}
Spoken = list[tuple[str, str]]
"""(question, answer) of each turn."""


def convai2(source: Path, images: Path, tally: Tally) -> Iterator[Document]:
    """ParlAI's files (``train_self_original.txt``): numbered lines, each dialogue from 1.

    ``1 your persona: i like to ski.``, then ``5 hi!\\thello , how are you ?\\t\\tcandidates|…``: what is said stands
    before the first tab, what is answered behind it.
    """
    for path in files(source, "*.txt"):
        for number, lines in enumerate(_dialogues(path, tally)):
            yield from tally.usable(
                f"{path.name}, dialogue {number}", _convai2, f"{key_of(path.stem)}-{number:06d}", lines
            )


def personachat(source: Path, images: Path, tally: Tally) -> Iterator[Document]:
    """``personachat_self_original.json``, as the transfer-learning-conv-ai project published it.

    ``{"train": [{"personality": […], "utterances": [{"history": […], "candidates": […]}]}]}``; the last candidate is
    what was answered. Of the splits only ``train`` is read.
    """
    dialogues = read_list(source, tally, None if begins_with_list(source) else "train")

    def document(number: int, entry: dict[str, Any]) -> Iterator[Document]:
        last = entry["utterances"][-1]
        said = _texts([*_texts(last["history"], "history"), last["candidates"][-1]], "candidates")
        yield _document(f"{number:08d}", {KEY: _texts(entry["personality"], "personality")}, _in_turns(said))

    for number, entry in enumerate(dialogues):
        yield from tally.usable(f"dialogue {number}", document, number, entry)


def jsonl(source: Path, images: Path, tally: Tally) -> Iterator[Document]:
    """``{"persona": {"city": "Rome"}, "turns": ["where do you live?", "in Rome"], "partner": {…}}`` a line.

    The persona's own turns are every second one; ``partner``, the other one's persona, may be left out.
    """

    def document(key: str, record: dict[str, Any]) -> Iterator[Document]:
        if not {"persona", "turns"} <= set(record):
            raise BadSample(errors.FIELDS, f"{key}: a line has persona and turns; plain texts: kosmos data import text")
        turns = _in_turns(_texts(record["turns"], "turns"))
        yield _document(key, record["persona"], turns, record.get("partner"))

    for key, record in records(source, tally):
        yield from tally.usable(key, document, key, record)


def _document(key: str, persona: dict[str, Any], spoken: Spoken, partner: dict[str, Any] | None = None) -> Document:
    segments: list[Segment] = [Persona(persona), Text("\n", supervised=False)]
    for place, (question, answer) in enumerate(spoken):
        segments += [Persona(partner)] if partner else []
        segments += turn(question, answer, last=place == len(spoken) - 1)
    return Document(key, segments)


def _texts(given: Any, name: str) -> list[str]:
    """A list of texts; one text is no list, though Python reads it as one of letters."""
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise BadSample(errors.FIELDS, f"{name} is no list of texts, but {str(given)[:80]!r}")
    return given


def _in_turns(said: Sequence[str]) -> Spoken:
    """Every second text is an answer; a question that nobody answered is left out."""
    spoken = [(question, answer) for question, answer in zip(said[::2], said[1::2], strict=False)]
    if not spoken or any(is_blank(text) for pair in spoken for text in pair):
        raise BadSample(errors.NO_CONVERSATION, "a dialogue has questions and answers in turns, none of them empty")
    return spoken


def _dialogues(path: Path, tally: Tally) -> Iterator[list[str]]:
    lines: list[str] = []
    for place, line in text_lines(path, tally):
        found = _LINE.fullmatch(line.rstrip("\r\n"))
        if found is None:
            if line.strip():
                tally.count(errors.FIELDS, f"{path.name}:{place}: no number in front")
            continue
        if found[1] == "1" and lines:
            yield lines
            lines = []
        lines.append(found[2])
    if lines:
        yield lines


def _convai2(key: str, lines: Sequence[str]) -> Iterator[Document]:
    personas: dict[str, list[str]] = {"own": [], "other": []}
    spoken: Spoken = []
    for line in lines:
        owner = next((name for mark, name in _OWNERS.items() if line.startswith(mark)), None)
        if owner is not None:
            personas[owner].append(line.split(": ", 1)[1].strip())
            continue
        question, _, rest = line.partition("\t")
        spoken += _in_turns([question, rest.split("\t", 1)[0]])
    if not personas["own"]:
        raise BadSample(errors.FIELDS, f"{key}: no line 'your persona: …'")
    if not spoken:
        raise BadSample(errors.NO_CONVERSATION, key)
    partner = {KEY: personas["other"]} if personas["other"] else None
    yield _document(key, {KEY: personas["own"]}, spoken, partner)
