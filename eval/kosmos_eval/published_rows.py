"""Rows of published files, by the file's kind: JSON lines, comma- and tab-separated tables, two XMLs, blocks of lines.

Each reader gives line or entry numbers, from 1, and mappings with the names that ``published.FORMATS`` converts.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from kosmos.read_json import read_utf8

from . import formats

Entry = dict[str, Any]
Rows = Callable[[Path], Iterator[tuple[int, Entry]]]


def json_lines(path: Path) -> Iterator[tuple[int, Entry]]:
    """Objects of a JSON lines file; a file NAME-labels.lst beside it (PIQA, Winogrande) brings the labels."""
    labels = path.with_name(f"{path.stem}-labels.lst")
    answers = labels.read_text(encoding="utf-8-sig").split() if labels.is_file() else None
    rows = list(formats.read_json_lines(path))
    if answers is not None and len(answers) != len(rows):
        raise ValueError(f"{labels}: {len(answers)} labels for {len(rows)} entries of {path.name}")
    for place, (number, row) in enumerate(rows):
        yield number, row if answers is None else {"label": answers[place], **row}


def multirc_options(path: Path) -> Iterator[tuple[int, Entry]]:
    """SuperGLUE's MultiRC: a passage a line, ``questions`` in it and ``answers`` in these; one row an answer."""
    for number, row in formats.read_json_lines(path):
        passage = _part(path, number, row, "passage")
        for place, question in enumerate(_part(path, number, passage, "questions")):
            source = f"{number}-{place}"
            shared = {"passage": passage.get("text"), "question": question.get("question"), "source": source}
            for option, answer in enumerate(_part(path, number, question, "answers")):
                label = {"label": answer["label"]} if "label" in answer else {}
                yield number, shared | {"option": answer.get("text"), "id": f"{source}-{option}"} | label


def record_queries(path: Path) -> Iterator[tuple[int, Entry]]:
    """SuperGLUE's ReCoRD: a passage with its entities a line, and ``qas``; one row a query."""
    for number, row in formats.read_json_lines(path):
        passage = _part(path, number, row, "passage")
        for place, asked in enumerate(_part(path, number, row, "qas")):
            found = {name: asked[name] for name in ("query", "answers") if name in asked}
            yield number, {"passage": passage, "id": f"{number}-{place}", "source": str(number), **found}


def _part(path: Path, number: int, row: Entry, name: str) -> Any:
    """A part of a nested line.

    Raises:
        ValueError: it is not there.
    """
    if name not in row:
        raise ValueError(f"{path}:{number}: no {name!r} here, which this set has as published by SuperGLUE")
    return row[name]


def comma_separated(path: Path) -> Iterator[tuple[int, Entry]]:
    """A table whose first line names the columns."""
    yield from _table(path)


def tab_separated(path: Path) -> Iterator[tuple[int, Entry]]:
    """The same with tabs, as GLUE writes it: quotation marks are text."""
    yield from _table(path, delimiter="\t", quoting=csv.QUOTE_NONE)


def _table(path: Path, **form: Any) -> Iterator[tuple[int, Entry]]:
    rows = csv.DictReader(io.StringIO(read_utf8(path), newline=""), **form)
    try:
        yield from enumerate(rows, start=1)
    except csv.Error as error:
        raise ValueError(f"{path}:{rows.line_num}: {error}; is a quotation mark not closed?") from error


def winograd_xml(path: Path) -> Iterator[tuple[int, Entry]]:
    """The schemas of ``WSCollection.xml``: text before and after the pronoun, two answers, the right one."""
    for number, schema in enumerate(_root(path).iter("schema"), start=1):
        parts = {name: " ".join((schema.findtext(f"text/{name}") or "").split()) for name in ("txt1", "pron", "txt2")}
        answers = [" ".join((answer.text or "").split()) for answer in schema.iter("answer")]
        yield number, parts | {"answers": answers, "label": (schema.findtext("correctAnswer") or "").strip(" .")}


def winograd_blocks(path: Path) -> Iterator[tuple[int, Entry]]:
    """``wsc273.txt``: blocks of a sentence with [MASK], the masked pronoun, the two answers, the right one."""
    block: list[str] = []
    for number, line in enumerate([*read_utf8(path).split("\n"), ""], start=1):
        if line.strip():
            block.append(line.strip())
        elif block:
            yield number - len(block), _schema(block)
            block = []


def _schema(block: list[str]) -> Entry:
    """A block as ``winograd_xml`` gives it; one that is none has no texts, which the caller names with its line."""
    if len(block) != 4 or block[0].count("[MASK]") != 1:
        return {}
    before, after = (" ".join(part.split()) for part in block[0].split("[MASK]"))
    answers = [answer.strip() for answer in block[2].split(",")]
    label = "AB"[answers.index(block[3])] if block[3] in answers[:2] else ""
    return {"txt1": before, "pron": block[1], "txt2": after, "answers": answers, "label": label}


def copa_xml(path: Path) -> Iterator[tuple[int, Entry]]:
    """The items of ``copa-dev.xml`` and ``copa-test.xml`` (Roemmele and others 2011), named as SuperGLUE names them."""
    for number, item in enumerate(_root(path).iter("item"), start=1):
        texts = {"premise": "p", "choice1": "a1", "choice2": "a2"}
        row: Entry = {name: " ".join((item.findtext(tag) or "").split()) for name, tag in texts.items()}
        if "asks-for" in item.attrib:
            row["question"] = item.attrib["asks-for"]
        if "most-plausible-alternative" in item.attrib:
            row["label"] = int(item.attrib["most-plausible-alternative"]) - 1
        yield number, row


def _root(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: not valid XML ({error})") from error
