"""Readers of the published evaluation files: VQAv2 questions, annotations and results; COCO captions and results.

Formats: visualqa.org/vqa_v2_teaser (question_id, image_id, answers) and cocodataset.org/#format-results (image_id,
caption). Every reader names the file and the entry in its errors.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any, get_args

from kosmos.read_json import read_utf8

Identifier = int | str
Answer = int | float | str  # some files write "2" as a number


@dataclass(frozen=True)
class VqaAnnotation:
    """The annotators' answers of one question (ten in VQAv2) and its published types."""

    question_id: Identifier
    image_id: Identifier
    answers: tuple[str, ...]
    question_type: str = ""
    answer_type: str = ""


@dataclass(frozen=True)
class CaptionReferences:
    """Reference captions by image id, and the images' file names where the file gives them."""

    captions: dict[Identifier, list[str]]
    file_names: dict[Identifier, str] = field(default_factory=dict)


def read_json(path: str | Path) -> Any:
    """The JSON content of a file.

    Raises:
        FileNotFoundError, ValueError: no such file; not JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    text = read_utf8(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error


def read_json_lines(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbers, from 1, and objects of a file with one JSON object a line; empty lines are passed over.

    Raises:
        FileNotFoundError, ValueError: no such file; a line that is no JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with path.open("rb") as file:  # not splitlines(), which also breaks at U+2028 within a text
        for number, line in enumerate(file, start=1):
            try:
                if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise ValueError("in UTF-16: save it as UTF-8")
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if not text.strip():
                    continue
                entry = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}:{number}: not valid JSON ({error})") from error
            if not isinstance(entry, dict):
                raise ValueError(f"{path}:{number}: expected a JSON object, found a {type(entry).__name__}")
            yield number, entry


def read_vqa_questions(path: str | Path) -> list[dict[str, Any]]:
    """The ``questions`` list of a VQAv2 question file: question_id, image_id, question; some add file_name."""
    questions = read_list(path, "questions")
    require(path, questions, {"question_id": Identifier, "image_id": Identifier, "question": str})
    return questions


def read_vqa_annotations(path: str | Path) -> list[VqaAnnotation]:
    """The annotations of a VQAv2 annotation file."""
    entries = read_list(path, "annotations")
    require(path, entries, {"question_id": Identifier, "image_id": Identifier, "answers": list})
    annotations = []
    for entry in entries:
        if not entry["answers"]:
            raise ValueError(f"{path}: question {entry['question_id']} has an empty list of answers")
        answers = votes(path, entry["question_id"], entry["answers"])
        types = str(entry.get("question_type", "")), str(entry.get("answer_type", ""))
        annotations.append(VqaAnnotation(entry["question_id"], entry["image_id"], answers, *types))
    return annotations


def votes(path: str | Path, question: Identifier, answers: Iterable[Any]) -> tuple[str, ...]:
    """The annotators' answers to one question, given as ``{"answer": text, …}`` or as plain text.

    Raises:
        ValueError: one is neither.
    """
    try:  # as published: ten for each of a quarter of a million questions
        texts = [answer["answer"] for answer in answers]
    except (KeyError, TypeError):
        texts = [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers]
    kinds = set(map(type, texts))
    if kinds == {str}:
        return tuple(texts)
    if not kinds <= {*get_args(Answer)}:
        strange = next(text for text in texts if type(text) not in get_args(Answer))
        raise ValueError(f"{path}: question {question}: an answer is {strange!r}, which is no text")
    return tuple(map(str, texts))


def read_caption_references(path: str | Path) -> CaptionReferences:
    """The captions of a COCO caption annotation file (``captions_val2014.json`` and the like)."""
    entries = read_list(path, "annotations")
    require(path, entries, {"image_id": Identifier, "caption": str})
    captions: dict[Identifier, list[str]] = {}
    for entry in entries:
        captions.setdefault(entry["image_id"], []).append(entry["caption"])
    images = [image for image in read_json(path).get("images", []) if "file_name" in image]
    require(path, images, {"id": Identifier, "file_name": str})
    return CaptionReferences(captions, {image["id"]: image["file_name"] for image in images})


def read_results(path: str | Path, key: str, value: str) -> dict[Identifier, str]:
    """A published result file: a list of {key: id, value: text}; for VQA question_id/answer, for captions
    image_id/caption.

    Raises:
        ValueError: not such a list, or an id that occurs twice.
    """
    entries = read_json(path)
    if not isinstance(entries, list):
        raise ValueError(f'{path}: expected a list [{{"{key}": …, "{value}": …}}, …], found a {type(entries).__name__}')
    require(path, entries, {key: Identifier, value: Answer})
    results: dict[Identifier, str] = {}
    for entry in entries:
        if entry[key] in results:
            raise ValueError(f"{path}: {key} {entry[key]} occurs twice; keep one prediction for each")
        results[entry[key]] = str(entry[value])
    return results


def reference_kind(path: str | Path) -> str:
    """Either "vqa" or "captions", from what the annotations hold."""
    entries = read_list(path, "annotations")
    if not entries:
        raise ValueError(f'{path}: "annotations" is empty')
    first = entries[0]
    for kind, key in (("vqa", "answers"), ("captions", "caption")):
        if isinstance(first, Mapping) and key in first:
            return kind
    raise ValueError(f'{path}: its "annotations" hold neither VQA answers nor captions')


def require(path: str | Path, entries: Iterable[Any], kinds: Mapping[str, Any]) -> None:
    """Check that every entry is an object with these keys, each of its kind.

    Raises:
        ValueError: the first that is not so.
    """
    types = [(key, kind, get_args(kind) or (kind,)) for key, kind in kinds.items()]
    entries = list(entries)
    with suppress(KeyError, TypeError):  # all at once, as nearly every file is right
        if all(set(map(type, map(itemgetter(key), entries))) <= set(allowed) for key, _, allowed in types):
            return
    for number, entry in enumerate(entries):
        for key, kind, allowed in types:
            if not isinstance(entry, dict) or key not in entry:
                raise ValueError(f'{path}: entry {number} (counting from 0) has no "{key}"')
            if type(entry[key]) not in allowed:  # what JSON holds is no subclass, and true is not a number
                wanted = {list: "a list", str: "text", Identifier: "a number or text"}.get(kind, "text")
                raise ValueError(f'{path}: entry {number} (counting from 0): "{key}" is {entry[key]!r}, not {wanted}')


def read_list(path: str | Path, key: str) -> list[dict[str, Any]]:
    """The list under ``key`` of a JSON object, as COCO's and VQAv2's files have it."""
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise ValueError(f'{path}: expected a JSON object with a list under "{key}"')
    return content[key]
