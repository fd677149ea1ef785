"""Questions about images: VQAv2, in the form in which KOSMOS-1 is asked."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import errors
from ..document import PICTURES, Document, is_blank
from ..errors import BadSample, Tally
from ..turns import turn
from ._files import caption, files, image, packed, read_list, walk


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
            and isinstance(entry.get("question_id"), int | str)
            and isinstance(answer := entry.get("multiple_choice_answer"), str)
            and not is_blank(answer)
        ):
            answers[str(entry["question_id"])] = answer
    asked: dict[str, list[tuple[str, str]]] = defaultdict(list)

    def question(entry: dict[str, Any]) -> Iterator[tuple[str, tuple[str, str]]]:
        number = str(entry["question_id"])
        if number not in answers:
            raise BadSample(errors.NO_ANSWER, f"question {number}")
        yield str(int(entry["image_id"])), (caption(entry["question"]), answers[number])

    for place, entry in enumerate(read_list(asking, tally, "questions")):
        for number, pair in tally.usable(f"question {place}", question, entry):
            asked[number].append(pair)
    pictures = _by_number(images, tally)

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


def _questions_and_annotations(source: Path) -> tuple[Path, Path]:
    """The two files of one split. A folder may hold several splits, which must not be mixed unasked."""
    asking = files(source, *packed("*questions*.json"))
    if len(asking) > 1:
        raise ValueError(f"{source} holds several question files: give one of {', '.join(map(str, asking))}")
    beside = files(asking[0].parent, *packed("*annotations*.json"))
    marks = _splits(asking[0])
    fitting = [path for path in beside if _splits(path) == marks]
    if len(fitting) != 1:
        raise ValueError(f"{asking[0]}: {len(fitting)} annotation files beside it are of the same split, not one")
    return asking[0], fitting[0]


def _splits(path: Path) -> set[str]:
    return set(re.findall(r"train|val|test|minival", path.name.lower()))


def _by_number(folder: Path, tally: Tally) -> dict[int, list[str]]:
    """Names of the picture files below ``folder`` by the number that each ends in."""
    found: defaultdict[int, list[str]] = defaultdict(list)
    for path in walk(folder, tally):
        digits = re.search(r"([0-9]{1,18})$", path.stem)
        if digits and path.suffix.lower().removeprefix(".") in PICTURES:
            found[int(digits.group(1))].append(str(path.relative_to(folder)))
    return found
