"""Questions and conversations about images: VQAv2 and LLaVA-style JSON, in the form in which KOSMOS-1 is asked."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import errors
from ..document import Document, Segment, Text
from ..turns import turn
from ._files import files, key_of, read_image, read_json

_IMAGE = re.compile("<image>")


def vqav2(source: Path, images: Path, skipped: Counter[str]) -> Iterator[Document]:
    """A questions file, or a folder with one, and the annotations beside it; one document per image with all questions.

    The answer is ``multiple_choice_answer``, the most frequent of the ten. A picture's file is the one whose name ends
    in its id (``COCO_train2014_000000000009.jpg``, ``9.png``).
    """
    asking, answering = _questions_and_annotations(source)
    answers = {
        annotation["question_id"]: annotation["multiple_choice_answer"]
        for annotation in read_json(answering)["annotations"]
    }
    asked: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for question in read_json(asking)["questions"]:
        if question["question_id"] not in answers:
            skipped["no answer"] += 1
            continue
        asked[question["image_id"]].append((question["question"], answers[question["question_id"]]))
    pictures = _by_number(images)
    for number, pairs in asked.items():
        picture = read_image(images, pictures.get(number, "?"), skipped)
        if picture is not None:
            turns = [turn(*pair, last=place == len(pairs) - 1) for place, pair in enumerate(pairs)]
            yield Document(str(number), [picture, *(segment for pair in turns for segment in pair)])


def llava(source: Path, images: Path, skipped: Counter[str]) -> Iterator[Document]:
    """``[{"image": …, "conversations": [{"from": "human", "value": "<image>\\n…"}, {"from": "gpt", …}]}]``."""
    for number, record in enumerate(read_json(source)):
        names = record.get("image") or []
        names = [names] if isinstance(names, str) else list(names)
        loaded = [read_image(images, name, skipped) for name in names]
        turns = record.get("conversations") or []
        roles = [said.get("from") for said in turns]
        if None in loaded or not turns or roles != ["human", "gpt"] * (len(turns) // 2):
            if None not in loaded:
                skipped["no conversation"] += 1
            continue
        if sum(said["value"].count("<image>") for said in turns) != len(loaded):
            skipped[errors.IMAGE_MISSING] += 1
            continue
        yield Document(f"{number:08d}-{key_of(str(record.get('id', '')))}", _conversation(turns, loaded))


def _conversation(turns: list[dict[str, Any]], pictures: list[Any]) -> list[Segment]:
    segments: list[Segment] = []
    rest = iter(pictures)
    for place in range(0, len(turns), 2):
        question, answer = turns[place]["value"], turns[place + 1]["value"]
        asked, said = turn(_IMAGE.sub(" ", question), answer, last=place == len(turns) - 2)
        shown = [next(rest) for _ in _IMAGE.findall(question)]
        segments += _in_place(question, shown) if len(shown) > 1 else [*shown, asked]
        segments.append(said)
    return segments


def _in_place(question: str, pictures: list[Any]) -> list[Segment]:
    """Several pictures stay where the question has them: "<image> or <image>?" means nothing otherwise. As in LLaVA's
    own code, a single one goes before its question.
    """
    first, *others = _IMAGE.split(question)
    texts = [first.strip(), *(text.strip() for text in others)]
    start = next((number for number, text in enumerate(texts) if text), len(texts) - 1)
    texts[start] = f"Question: {texts[start]}"
    texts[-1] = f"{texts[-1]} Answer:"
    segments: list[Segment] = []
    for number, text in enumerate(texts):
        segments += pictures[number - 1 : number] if number else []
        segments += [Text(text.strip(), supervised=False)] if text else []
    return segments


def _questions_and_annotations(source: Path) -> tuple[Path, Path]:
    """The two files of one split. A folder may hold several splits, which must not be mixed unasked."""
    asking = files(source, "*questions*.json")
    if len(asking) > 1:
        raise ValueError(f"{source} holds several question files: give one of {', '.join(map(str, asking))}")
    beside = files(asking[0].parent, "*annotations*.json")
    marks = set(re.findall(r"train|val|test|minival", asking[0].name))
    fitting = [path for path in beside if set(re.findall(r"train|val|test|minival", path.name)) == marks]
    if len(fitting) != 1:
        raise ValueError(f"{asking[0]}: {len(fitting)} annotation files beside it are of the same split, not one")
    return asking[0], fitting[0]


def _by_number(folder: Path) -> dict[int, str]:
    """Names of the picture files below ``folder`` by the number that each ends in."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if (digits := re.search(r"(\d+)$", path.stem)) and path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"):
            found[int(digits.group(1))] = str(path.relative_to(folder))
    return found
