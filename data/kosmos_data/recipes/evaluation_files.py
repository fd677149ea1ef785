"""Evaluation data in the formats in which the field publishes it, so that any tool can read the result.

VQAv2 questions and annotations (ten answers each), COCO caption annotations, and text as JSON lines.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .easy_vqa import Picture, question_type

REFERENCES = ("a {color} {shape}", "a {shape} that is {color}", "a picture with a {color} {shape}")


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its one true answer and its type, by which scores are split."""

    text: str
    answer: str
    type: str


def write_vqa(folder: Path, pictures: Iterable[Picture]) -> int:
    """Write easy-VQA's questions as :func:`write_questions` does."""
    rows = [
        (picture.number, "", [Question(text, answer, question_type(answer)) for text, answer in picture.questions])
        for picture in pictures
    ]
    return write_questions(folder, "easy-VQA in the format of VQAv2", rows)


def write_questions(folder: Path, description: str, pictures: Iterable[tuple[int, str, Sequence[Question]]]) -> int:
    """Write ``vqa_questions.json`` and ``vqa_annotations.json`` (VQAv2); return the number of questions.

    Question ids are ``image_id * 1000 + n``. VQAv2 has ten human answers per question; here all ten are the one truth.

    Args:
        pictures: (image id, file name, questions) rows; a file name, which VQAv2 makes of the image id, is written into
            each question unless it is empty.
    """
    questions: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, file_name, asked in pictures:
        for number, question in enumerate(asked):
            ids = {"image_id": image_id, "question_id": image_id * 1000 + number}
            questions.append({**ids, "question": question.text} | ({"file_name": file_name} if file_name else {}))
            votes = [{"answer": question.answer, "answer_confidence": "yes", "answer_id": n} for n in range(1, 11)]
            annotations.append(
                {
                    **ids,
                    "question_type": question.type,
                    "answer_type": "yes/no" if question.type == "yes/no" else "other",
                    "multiple_choice_answer": question.answer,
                    "answers": votes,
                }
            )
    header = {"info": {"description": description}, "data_subtype": folder.name}
    _write(folder / "vqa_questions.json", {**header, "task_type": "Open-Ended", "questions": questions})
    _write(folder / "vqa_annotations.json", {**header, "annotations": annotations})
    return len(questions)


def write_captions(folder: Path, pictures: Iterable[Picture]) -> int:
    """Write ``captions.json`` (COCO) for the pictures whose shape and colour are known; return how many these are."""
    known = [picture for picture in pictures if picture.shape and picture.color]
    images = [{"id": picture.number, "file_name": picture.path.name, "width": 64, "height": 64} for picture in known]
    annotations = [
        {
            "id": picture.number * 10 + number,
            "image_id": picture.number,
            "caption": reference.format(color=picture.color, shape=picture.shape),
        }
        for picture in known
        for number, reference in enumerate(REFERENCES)
    ]
    info = {"description": "captions worked out from easy-VQA's answers"}
    _write(folder / "captions.json", {"info": info, "images": images, "annotations": annotations, "type": "captions"})
    return len(known)


def write_coco(path: Path, description: str, pictures: Sequence[tuple[str, tuple[int, int], Sequence[str]]]) -> None:
    """Write COCO caption annotations for (file name, (width, height), captions) rows, numbered from 1."""
    images = [
        {"id": number, "file_name": name, "width": size[0], "height": size[1]}
        for number, (name, size, _) in enumerate(pictures, start=1)
    ]
    captions = [(number, caption) for number, row in enumerate(pictures, start=1) for caption in row[2]]
    annotations = [
        {"id": number, "image_id": image, "caption": caption}
        for number, (image, caption) in enumerate(captions, start=1)
    ]
    info = {"description": description}
    _write(path, {"info": info, "images": images, "annotations": annotations, "type": "captions"})


def write_text(folder: Path, texts: dict[str, str]) -> int:
    """Write ``text.jsonl``: one ``{"id": …, "text": …}`` a line; return the number of lines."""
    return write_lines(folder / "text.jsonl", [{"id": name, "text": text} for name, text in texts.items()])


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> int:
    """Write JSON lines; return their number."""
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(rows)


def _write(path: Path, body: dict[str, Any]) -> None:
    path.write_text(json.dumps(body, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
