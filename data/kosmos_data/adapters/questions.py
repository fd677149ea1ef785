"""Questions and conversations about images: VQAv2 and LLaVA-style JSON, in the form in which KOSMOS-1 is asked."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import errors
from ..document import PICTURES, Document, Segment, Text
from ..errors import BadSample, Tally
from ..turns import turn
from ._files import caption, files, image, key_of, read_list

_IMAGE = re.compile("<image>")


def vqav2(source: Path, images: Path, tally: Tally) -> Iterator[Document]:
    """A questions file, or a folder with one, and the annotations beside it; one document per image with all questions.

    The answer is ``multiple_choice_answer``, the most frequent of the ten. A picture's file is the one whose name ends
    in its id (``COCO_train2014_000000000009.jpg``, ``9.png``); two of them for one question are refused.
    """
    asking, answering = _questions_and_annotations(source)
    answers: dict[Any, str] = {}
    for entry in read_list(answering, tally, "annotations"):
        if (
            isinstance(entry, dict)
            and isinstance(answer := entry.get("multiple_choice_answer"), str)
            and answer.strip()
        ):
            answers[str(entry.get("question_id"))] = answer
    asked: dict[str, list[tuple[str, str]]] = defaultdict(list)

    def question(entry: dict[str, Any]) -> Iterator[tuple[str, tuple[str, str]]]:
        number = str(entry["question_id"])
        if number not in answers:
            raise BadSample(errors.NO_ANSWER, f"question {number}")
        yield str(int(entry["image_id"])), (caption(entry["question"]), answers[number])

    for place, entry in enumerate(read_list(asking, tally, "questions")):
        for number, pair in tally.usable(f"question {place}", question, entry):
            asked[number].append(pair)
    pictures = _by_number(images)

    def document(number: str, pairs: list[tuple[str, str]]) -> Iterator[Document]:
        names = pictures.get(int(number), [])
        if not names:
            raise BadSample(errors.IMAGE_MISSING, f"no picture below {images} whose name ends in {number}")
        turns = [turn(*pair, last=place == len(pairs) - 1) for place, pair in enumerate(pairs)]
        yield Document(number, [image(images, names[0]), *(segment for pair in turns for segment in pair)])

    for number, pairs in asked.items():
        if len(names := pictures.get(int(number), [])) > 1:
            raise ValueError(
                f"{images}: {names[0]} and {names[1]} are both image {number}; name one folder of pictures"
            )
        yield from tally.usable(f"image {number}", document, number, pairs)


def llava(source: Path, images: Path, tally: Tally) -> Iterator[Document]:
    """``[{"image": …, "conversations": [{"from": "human", "value": "<image>\\n…"}, {"from": "gpt", …}]}]``."""

    def document(number: int, record: dict[str, Any]) -> Iterator[Document]:
        names = record.get("image") or []
        names = [names] if isinstance(names, str) else list(names)
        turns = record.get("conversations") or []
        if not turns or [said.get("from") for said in turns] != ["human", "gpt"] * (len(turns) // 2):
            there = ", ".join(map(str, list(record)[:6]))
            raise BadSample(
                errors.NO_CONVERSATION, f"turns of human and gpt in 'conversations'; its fields are {there}"
            )
        loaded = [image(images, name) for name in names]
        marks = sum(said["value"].count("<image>") for said in turns)
        if marks > len(loaded):
            raise BadSample(errors.IMAGE_MISSING, f"{marks} marks <image>, {len(loaded)} images named")
        if marks < len(loaded):
            raise BadSample(errors.NO_MARK, f"{marks} marks <image>, {len(loaded)} images named")
        for said in turns:
            if said["from"] == "gpt":
                caption(said["value"])
        yield Document(f"{number:08d}-{key_of(str(record.get('id', '')))}", _conversation(turns, loaded))

    for number, record in enumerate(read_list(source, tally)):
        yield from tally.usable(f"record {number}", document, number, record)


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


def _by_number(folder: Path) -> dict[int, list[str]]:
    """Names of the picture files below ``folder`` by the number that each ends in."""
    found: defaultdict[int, list[str]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        digits = re.search(r"([0-9]{1,18})$", path.stem)
        if digits and path.suffix.lower().removeprefix(".") in PICTURES and not path.name.startswith("."):
            found[int(digits.group(1))].append(str(path.relative_to(folder)))
    return found
