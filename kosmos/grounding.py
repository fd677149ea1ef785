"""Where in the picture: boxes as tokens, in and out (KOSMOS-2, arXiv 2306.14824, section 2.1).

    <grounding> An image of <phrase> a snowman </phrase><object><patch_index_0044><patch_index_0863></object> by …

A box is two of the 32 × 32 bins of the picture, row by row: that of its upper left and that of its lower right corner.
A phrase with several boxes has ``</delimiter_of_multi_objects/>`` between them. Out of bins, a box reaches from the
middle of the one to the middle of the other, or over whole bins where both are in one row or column.

Boxes of documents, logs and conversations are shares of the whole picture. A model whose pictures are cropped sees its
middle only: :func:`to_view` and :func:`to_picture` go from one to the other.

Differs from the released training code: an edge on the border of two bins belongs to the bin inside the box, as in
transformers' ``Kosmos2Processor`` (0.5 as a right edge is bin 15, in the release 16).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .segments import Box, Phrase, check_box

if TYPE_CHECKING:
    from PIL.Image import Image

    from .processing_kosmos import KosmosProcessor

BINS = 32
BEGIN, PHRASE, PHRASE_END, OBJECT, OBJECT_END = "<grounding>", "<phrase>", "</phrase>", "<object>", "</object>"
NEXT_OBJECT = "</delimiter_of_multi_objects/>"
TOKENS = (
    *(PHRASE, PHRASE_END, OBJECT, OBJECT_END, NEXT_OBJECT, BEGIN),
    *(f"<patch_index_{index:04d}>" for index in range(BINS * BINS)),
)
"""In KOSMOS-2's order of ids."""

LEAST_LEFT = 0.2  # share of a box that the crop must leave (KOSMOS-2's ``drop_crop_thr``)
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")

_PAIR = r"<patch_index_\d+><patch_index_\d+>"
_ENTITY = re.compile(f"(?:{PHRASE}([^<]+){PHRASE_END})?{OBJECT}((?:{_PAIR}{NEXT_OBJECT})*{_PAIR}){OBJECT_END}")
_TAG = re.compile("<.*?>")

Grounded = tuple[str, tuple[int, int], list[tuple[float, float, float, float]]]


def to_bins(box: Sequence[float]) -> tuple[int, int]:
    """Return the bins of the upper left and the lower right corner; ValueError for what is no box."""
    x1, y1, x2, y2 = check_box(box)
    left, top = math.floor(x1 * BINS), math.floor(y1 * BINS)
    right, bottom = math.ceil(x2 * BINS) - 1, math.ceil(y2 * BINS) - 1
    return top * BINS + left, bottom * BINS + right


def from_bins(upper_left: int, lower_right: int) -> tuple[float, float, float, float]:
    """Return the box that two bins mean; what a model writes may be reversed, or lie outside the picture."""
    (y1, x1), (y2, x2) = divmod(upper_left, BINS), divmod(lower_right, BINS)
    low, high = (0.0, 1.0) if x1 == x2 or y1 == y2 else (0.5, 0.5)
    return (x1 + low) / BINS, (y1 + low) / BINS, (x2 + high) / BINS, (y2 + high) / BINS


def read_grounded(text: str) -> tuple[str, list[Grounded]]:
    """Take the tags out of a text that a model wrote.

    Args:
        text: with its tokens spelled out.

    Returns:
        The text without anything between ``<`` and ``>``, and of each phrase with boxes: the phrase, its first
        character and the one behind it in that text, and its boxes. Boxes without a phrase stand alone under the names
        of their bins.
    """
    clean = _TAG.sub("", text)
    indent = len(clean) - len(clean.lstrip())
    entities: list[Grounded] = []
    for found in _ENTITY.finditer(text):
        numbers = [int(number) for number in re.findall(r"<patch_index_(\d+)>", found[2])]
        pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
        phrase, place = found[1], found.span(1)
        if phrase is None:
            at = len(_TAG.sub("", text[: found.start()])) - indent
            entities += [(f"<patch_index_{a}><patch_index_{b}>", (at, at), [from_bins(a, b)]) for a, b in pairs]
            continue
        begin, end = (len(_TAG.sub("", text[:at])) - indent for at in place)
        begin += len(phrase) - len(phrase.lstrip())
        end -= len(phrase) - len(phrase.rstrip())
        entities.append((phrase.strip(), (begin, end), [from_bins(a, b) for a, b in pairs]))
    return clean.strip(), entities


def read_answer(processor: KosmosProcessor, ids: Sequence[int]) -> tuple[str, tuple[Phrase, ...]]:
    """Return the text that generated ids spell, and its phrases with boxes, in shares of what the model saw.

    The ids are walked, not their spelling: a ``<`` of the text is text. Boxes that no picture has (a reversed one) and
    boxes without a phrase are left out.
    """
    tokenizer = processor.tokenizer
    ids = list(ids)
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    known = processor.grounding_ids
    if not known or known[OBJECT] not in ids:
        return text.strip(), ()
    bins = {known[token]: index for index, token in enumerate(TOKENS[-BINS * BINS :])}
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    plain: list[int] = []
    phrases: list[Phrase] = []
    begin = end = 0
    corners: list[int] = []
    for token in ids:
        if token == known[PHRASE]:
            begin = len(tokenizer.decode(plain))
        elif token == known[PHRASE_END]:
            end = len(tokenizer.decode(plain))
        elif token == known[OBJECT]:
            corners = []
        elif token in bins:
            corners.append(bins[token])
        elif token == known[OBJECT_END]:
            phrases += _phrase(text, begin, end, corners)
            begin = end
        elif token not in special:
            plain.append(token)
    indent = len(text) - len(text.lstrip())
    shifted = tuple(Phrase(one.begin - indent, one.end - indent, one.boxes) for one in phrases)
    return text.strip(), shifted


def _phrase(text: str, begin: int, end: int, corners: Sequence[int]) -> list[Phrase]:
    """The phrase without the blanks around it in a list, which is empty where phrase or boxes are none."""
    own = text[begin:end]
    begin, end = begin + len(own) - len(own.lstrip()), end - (len(own) - len(own.rstrip()))
    boxes = []
    for pair in zip(corners[::2], corners[1::2], strict=False):
        try:
            boxes.append(check_box(from_bins(*pair)))
        except ValueError:  # a model may write what is no box
            continue
    return [Phrase(begin, end, tuple(boxes))] if boxes and begin < end else []


def to_view(box: Box, size: tuple[int, int], crop: str) -> Box | None:
    """Turn shares of a picture into shares of what the model sees of it.

    Args:
        box: of the whole picture.
        size: its width and height, upright.
        crop: of the image processor: ``center`` shows the middle square, ``none`` all.

    Returns:
        The box, cut at the borders of the view; None where less than a fifth of it is left.
    """
    if crop == "none" or size[0] == size[1]:
        return box
    cut = [_cut(low, high, side, min(size)) for low, high, side in zip(box[:2], box[2:], size, strict=True)]
    (x1, x2, kept_x), (y1, y2, kept_y) = cut
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 and kept_x * kept_y >= LEAST_LEFT else None


def _cut(low: float, high: float, side: int, seen: int) -> tuple[float, float, float]:
    """Two edges along a side of which the middle ``seen`` pixels are shown; and the share that is left between."""
    begin = (side - seen) / 2
    inside = [min(1.0, max(0.0, (edge * side - begin) / seen)) for edge in (low, high)]
    return inside[0], inside[1], (inside[1] - inside[0]) * seen / ((high - low) * side)


def to_picture(phrases: Iterable[Phrase], size: tuple[int, int], crop: str) -> tuple[Phrase, ...]:
    """Turn boxes of what the model saw into shares of the whole picture, of this width and height."""
    if crop == "none" or size[0] == size[1]:
        return tuple(phrases)
    seen = min(size)

    def outer(box: Box) -> Box:
        edges = [(edge * seen + (side - seen) / 2) / side for edge, side in zip(box, (*size, *size), strict=True)]
        return check_box([min(1.0, edge) for edge in edges])

    return tuple(Phrase(one.begin, one.end, tuple(map(outer, one.boxes))) for one in phrases)


def draw_boxes(picture: Image, text: str, phrases: Iterable[Phrase]) -> Image:
    """Return a copy of an upright RGB picture with the boxes of each phrase in a colour, its words beside them."""
    from PIL import ImageDraw, ImageFont

    drawn = picture.copy()
    pen = ImageDraw.Draw(drawn)
    width, height = drawn.size
    thick = max(1, round(min(width, height) / 100))
    font: Any = ImageFont.load_default(max(9, min(width, height) / 22))
    for number, phrase in enumerate(phrases):
        colour, words = COLOURS[number % len(COLOURS)], text[phrase.begin : phrase.end]
        for x1, y1, x2, y2 in phrase.boxes:
            left, top = x1 * width, y1 * height
            pen.rectangle(
                (left, top, max(left, x2 * width - 1), max(top, y2 * height - 1)), outline=colour, width=thick
            )
            label = pen.textbbox((left + thick, top + thick), words, font=font)
            pen.rectangle(label, fill=colour)
            pen.text((left + thick, top + thick), words, fill="white", font=font)
    return drawn
