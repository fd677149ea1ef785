"""Questions and conversations about images: VQAv2 and LLaVA-style JSON, in the form in which KOSMOS-1 is asked."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import errors
from ..document import Document, Segment
from ._files import files, read_image, read_json, turn


def vqav2(source: Path, images: Path, skipped: Counter[str]) -> Iterator[Document]:
    """A folder with ``*questions*.json`` and ``*annotations*.json``; one document per image with all its questions.

    The answer is ``multiple_choice_answer``, the most frequent of the ten. A picture's file is the one whose name ends
    in its id (``COCO_train2014_000000000009.jpg``, ``9.png``).
    """
    answers = {
        annotation["question_id"]: annotation["multiple_choice_answer"]
        for path in files(source, "*annotations*.json")
        for annotation in read_json(path)["annotations"]
    }
    asked: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for path in files(source, "*questions*.json"):
        for question in read_json(path)["questions"]:
            if question["question_id"] not in answers:
                skipped["no answer"] += 1
                continue
            asked[question["image_id"]].append((question["question"], answers[question["question_id"]]))
    pictures = _by_number(images)
    for number, pairs in asked.items():
        picture = read_image(pictures.get(number, images / "?"), skipped)
        if picture is not None:
            turns = [turn(*pair, last=place == len(pairs) - 1) for place, pair in enumerate(pairs)]
            yield Document(str(number), [picture, *(segment for pair in turns for segment in pair)])


def llava(source: Path, images: Path, skipped: Counter[str]) -> Iterator[Document]:
    """``[{"image": …, "conversations": [{"from": "human", "value": "<image>\\n…"}, {"from": "gpt", …}]}]``."""
    for number, record in enumerate(read_json(source)):
        names = record.get("image") or []
        names = [names] if isinstance(names, str) else list(names)
        loaded = [read_image(images / name, skipped) for name in names]
        turns = record.get("conversations") or []
        roles = [said.get("from") for said in turns]
        if None in loaded or not turns or roles != ["human", "gpt"] * (len(turns) // 2):
            skipped["no conversation"] += None not in loaded
            continue
        if sum(said["value"].count("<image>") for said in turns) != len(loaded):
            skipped[errors.IMAGE_MISSING] += 1
            continue
        key = re.sub(r"[^\w-]", "_", str(record.get("id", "")))
        yield Document(f"{number:08d}-{key}", _conversation(turns, loaded))


def _conversation(turns: list[dict[str, Any]], pictures: list[Any]) -> list[Segment]:
    """The pictures of a turn come before its question, wherever ``<image>`` stands in it."""
    segments: list[Segment] = []
    rest = iter(pictures)
    for place in range(0, len(turns), 2):
        question, answer = turns[place]["value"], turns[place + 1]["value"]
        segments += [next(rest) for _ in range(question.count("<image>"))]
        segments += turn(question.replace("<image>", " "), answer, last=place == len(turns) - 2)
    return segments


def _by_number(folder: Path) -> dict[int, Path]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if (digits := re.search(r"(\d+)$", path.stem)) and path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"):
            found[int(digits.group(1))] = path
    return found
