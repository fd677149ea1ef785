"""Readers of the published evaluation files: VQAv2 questions, annotations and results; COCO captions and results.

Formats: visualqa.org/vqa_v2_teaser (question_id, image_id, answers) and cocodataset.org/#format-results (image_id,
caption). Every reader names the file and the entry in its errors.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Identifier = int | str


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
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error


def read_vqa_questions(path: str | Path) -> list[dict[str, Any]]:
    """The ``questions`` list of a VQAv2 question file: question_id, image_id, question."""
    questions = _list_under(path, "questions")
    _require(path, questions, ("question_id", "image_id", "question"))
    return questions


def read_vqa_annotations(path: str | Path) -> list[VqaAnnotation]:
    """The annotations of a VQAv2 annotation file."""
    entries = _list_under(path, "annotations")
    _require(path, entries, ("question_id", "image_id", "answers"))
    annotations = []
    for entry in entries:
        answers = tuple(answer["answer"] if isinstance(answer, dict) else str(answer) for answer in entry["answers"])
        if not answers:
            raise ValueError(f"{path}: question {entry['question_id']} has an empty list of answers")
        types = str(entry.get("question_type", "")), str(entry.get("answer_type", ""))
        annotations.append(VqaAnnotation(entry["question_id"], entry["image_id"], answers, *types))
    return annotations


def read_caption_references(path: str | Path) -> CaptionReferences:
    """The captions of a COCO caption annotation file (``captions_val2014.json`` and the like)."""
    entries = _list_under(path, "annotations")
    _require(path, entries, ("image_id", "caption"))
    captions: dict[Identifier, list[str]] = {}
    for entry in entries:
        captions.setdefault(entry["image_id"], []).append(entry["caption"])
    images = read_json(path).get("images", [])
    return CaptionReferences(captions, {image["id"]: image["file_name"] for image in images if "file_name" in image})


def read_results(path: str | Path, key: str, value: str) -> dict[Identifier, str]:
    """A published result file: a list of {key: id, value: text}; for VQA question_id/answer, for captions
    image_id/caption.

    Raises:
        ValueError: not such a list, or an id that occurs twice.
    """
    entries = read_json(path)
    if not isinstance(entries, list):
        raise ValueError(f'{path}: expected a list [{{"{key}": …, "{value}": …}}, …], found a {type(entries).__name__}')
    _require(path, entries, (key, value))
    results: dict[Identifier, str] = {}
    for entry in entries:
        if entry[key] in results:
            raise ValueError(f"{path}: {key} {entry[key]} occurs twice; keep one prediction for each")
        results[entry[key]] = str(entry[value])
    return results


def reference_kind(path: str | Path) -> str:
    """Either "vqa" or "captions", from what the annotations hold."""
    entries = _list_under(path, "annotations")
    first = entries[0] if entries else {}
    for kind, key in (("vqa", "answers"), ("captions", "caption")):
        if isinstance(first, Mapping) and key in first:
            return kind
    raise ValueError(f'{path}: its "annotations" hold neither VQA answers nor captions')


def _list_under(path: str | Path, key: str) -> list[dict[str, Any]]:
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise ValueError(f'{path}: expected a JSON object with a list under "{key}"')
    return content[key]


def _require(path: str | Path, entries: Iterable[Any], keys: tuple[str, ...]) -> None:
    for number, entry in enumerate(entries):
        for key in keys:
            if not isinstance(entry, Mapping) or key not in entry:
                raise ValueError(f'{path}: entry {number} (counting from 0) has no "{key}"')
