"""Text as pictures: the renderer for OCR-free understanding (KOSMOS-1, section 4.4: Rendered SST-2).

The model must read a sentence from its picture and say whether the opinion is positive. ``source`` takes any JSON
lines with ``text`` and ``label`` (SST-2: 0/1 or negative/positive); without one, short opinions are composed here
from word lists, whose labels are exact because the adjective decides. Rows that are left become demonstrations, whose
rationale for a chain of thought is what the picture says.
"""

from __future__ import annotations

import itertools
import random
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from .. import formats

SIZE = 224
_DEMONSTRATIONS = 32
LABELS = ("negative", "positive")
_THINGS = ("film", "play", "book", "song", "meal", "story", "cast", "plot", "music", "ending")
_WORDS = {
    "positive": ("wonderful", "charming", "brilliant", "touching", "funny", "delightful", "superb", "moving"),
    "negative": ("boring", "awful", "dull", "clumsy", "tiresome", "pointless", "dreadful", "bland"),
}
_FRAMES = (
    "the {thing} is {word}",
    "what a {word} {thing} !",
    "i found the {thing} {word}",
    "a {word} {thing} from start to end",
)


def make(out: Path, count: int, seed: int, source: Path | None) -> Iterator[dict[str, Any]]:
    """JSON lines of ``count`` rendered sentences and demonstrations of others; pictures go to ``out/images``."""
    rows = _read(source) if source is not None else _compose(seed)
    for number, (text, label) in enumerate(itertools.islice(rows, count + _DEMONSTRATIONS)):
        file = f"{number:05d}.png"
        render(text).save(out / "images" / file)
        item = {"id": f"{number:05d}", "images": [file], "text": text, "answers": [label]}
        yield item if number < count else item | {"split": "train", "rationale": f"It says: {text}"}


def render(text: str) -> Image.Image:
    """Black text on white, wrapped and as large as fits into a square of ``SIZE`` pixels; Pillow's own font.

    Raises:
        ValueError: the text does not fit even at 8 points.
    """
    fits, best = range(8, SIZE // 6), None
    low, high = 0, len(fits)
    while low < high:  # the largest font that fits; larger ones never do
        middle = (low + high) // 2
        picture = _typeset(text, fits[middle])
        if picture is None:
            high = middle
        else:
            low, best = middle + 1, picture
    if best is None:
        raise ValueError(f"a text of {len(text)} characters does not fit into {SIZE}x{SIZE} pixels: {text[:40]!r}…")
    return best


def _typeset(text: str, points: int) -> Image.Image | None:
    """The picture at one font SIZE, or None if the text does not fit."""
    font = ImageFont.load_default(points)
    columns = max(4, int(SIZE * 0.92 / font.getlength("n")))
    if max((len(word) for word in text.split()), default=0) > columns:
        return None
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, columns)]
    if len(lines) * points > SIZE:
        return None
    picture = Image.new("RGB", (SIZE, SIZE), "white")
    pen = ImageDraw.Draw(picture)
    wrapped = "\n".join(lines)
    _, _, right, bottom = pen.multiline_textbbox((0, 0), wrapped, font=font, spacing=points // 4)
    if right > SIZE * 0.96 or bottom > SIZE * 0.96:
        return None
    place = ((SIZE - right) / 2, (SIZE - bottom) / 2)
    pen.multiline_text(place, wrapped, fill="black", font=font, spacing=points // 4)
    return picture


def _compose(seed: int) -> Iterator[tuple[str, str]]:
    rows = [
        (frame.format(thing=thing, word=word), label)
        for label, words in _WORDS.items()
        for word, thing, frame in itertools.product(words, _THINGS, _FRAMES)
    ]
    random.Random(f"rendered {seed}").shuffle(rows)
    yield from rows


def _read(source: Path) -> Iterator[tuple[str, str]]:
    for number, entry in formats.read_json_lines(source):
        if "text" not in entry or "label" not in entry:
            raise ValueError(f'{source}:{number}: expected {{"text": …, "label": …}}')
        label = dict(enumerate(LABELS)).get(entry["label"], entry["label"])
        if label not in LABELS:
            raise ValueError(f"{source}:{number}: label {label!r} is none of 0, 1, {', '.join(LABELS)}")
        yield entry["text"], label
