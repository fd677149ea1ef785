"""Document → ids and weights: which segments of it are trained.

How each is written stands in ``KosmosProcessor.encode``. Loss mask of KOSMOS-1 table 21 and KOSMOS-2
``laion2b_obj_loader.py``: no loss on ``<image>``, its slots and ``</image>``; the first trained target after an image
is the first token of the text. A text span is slots only, without tokens around it, as in MetaLM: what follows is
predicted at the span's last slot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kosmos.grounding import to_view
from kosmos.segments import Box, BrokenPicture, Phrase, TooLong, Unreadable

from .. import errors
from ..about_persona import about_persona
from ..document import Document, Image, Segment, Text
from ..errors import BadSample
from ..example import Flat
from ..images import decode, upright_size
from ..turns import has_turns

if TYPE_CHECKING:
    from kosmos.processing_kosmos import KosmosProcessor

Loss = Literal["all", "supervised"]


def flatten(
    document: Document,
    processor: KosmosProcessor,
    loss: Loss = "all",
    predict_image: bool = False,
    end_turns: bool = False,
    boxes: bool = True,
    related: bool = False,
) -> Flat:
    """Write a document out as ids with weights, decoding its images and tokenising its text spans for their encoder.

    Where the processor's ``turn_end`` is ``eos``, an answer of a document with marked turns ends with ``</s>`` instead
    of the end of its line.

    Args:
        document: text, images and text spans.
        processor: tokenizers and image processor of the run.
        loss: ``all`` text, or only ``supervised`` segments (instruction tuning, KOSMOS-1 section 3.3).
        predict_image: also train the prediction of ``<image>`` itself, that is *when* a picture comes next.
        end_turns: write ``</s>`` behind each text that is followed by a span or an image (MetaLM's demonstrations).
        boxes: write the boxes of texts that have some.
        related: tell which answers say something of the persona (:mod:`kosmos_data.about_persona`).

    Raises:
        BadSample: an image cannot be decoded, boxes have no image before them, a span is longer than its encoder reads,
            there is nothing but ``<s>`` and ``</s>``, or nothing is trained.
    """
    bos, eos = [processor.tokenizer.bos_token_id], [processor.tokenizer.eos_token_id]
    parts: list[tuple[Segment | list[int], float]] = [(bos, 0.0)]
    weight, own_ends = 0.0, processor.turn_end == "eos" and has_turns(document)
    about, known = about_persona(document) if related else [-1] * len(document.segments), [-1]
    for segment, following, one in zip(document.segments, [*document.segments[1:], None], about, strict=True):
        if not boxes and isinstance(segment, Text):
            segment = replace(segment, boxes=None)
        weight = float(loss == "all" or (isinstance(segment, Text) and segment.supervised))
        ends = end_turns and isinstance(segment, Text) and not isinstance(following, Text)
        if own_ends and _is_answer(segment) and not _is_answer(following):
            assert isinstance(segment, Text)
            segment, ends = _without_line_end(segment), True
        parts.append((segment, weight))
        if ends and following is not None:
            parts.append((eos, weight))
        known += [one] * (len(parts) - len(known))
    parts.append((eos, weight))
    flat = write(parts, processor, document.key, predict_image, [*known, known[-1]] if related else None)
    if len(flat.ids) == 2:
        raise BadSample(errors.EMPTY, document.key)
    if not flat.weight.any():
        raise BadSample(errors.UNSUPERVISED, document.key)
    return flat


def _without_line_end(segment: Text) -> Text:
    text = segment.text.removesuffix("\n")
    kept = segment.boxes and tuple(replace(one, end=min(one.end, len(text))) for one in segment.boxes)
    return replace(segment, text=text, boxes=kept, choices=None)


def _is_answer(segment: Segment | None) -> bool:
    return isinstance(segment, Text) and segment.supervised


def write(
    parts: Iterable[tuple[Segment | list[int], float]],
    processor: KosmosProcessor,
    key: str,
    predict_image: bool = False,
    related: Sequence[int] | None = None,
) -> Flat:
    """Write segments and ids, each with the weight of predicting it; what an encoder reads has none and stays whole.

    Args:
        parts: segments of a document, or ids, and their weights.
        processor: of the run.
        key: of the document, for messages.
        predict_image: weight of the mark before what an encoder reads, if it has one.
        related: of each part whether it says something of the persona; None: it is not asked.

    Raises:
        BadSample: an image, sound or video cannot be decoded, or a segment is longer than its encoder reads.
    """
    segments, weights = zip(*parts, strict=True)
    try:
        encoded = processor.encode(_as_seen(segments, processor), skip_empty=True)
    except TooLong as error:
        raise BadSample(errors.ENCODED_TOO_LONG, f"{key}: {error}") from error
    except Unreadable as error:
        reason = errors.IMAGE_BROKEN if isinstance(error, BrokenPicture) else errors.UNREADABLE
        raise BadSample(reason, f"{key}: {error}") from error
    weight = np.repeat(np.array(weights, dtype=np.float32), np.diff(encoded.edges))
    cuts = np.ones(len(encoded.ids), dtype=bool)
    for placed in encoded.placed:
        begin, stop = encoded.around(placed)
        weight[begin:stop] = 0.0
        cuts[begin + 1 : stop] = False
        if placed.start > begin:
            weight[begin] = predict_image
    for begin, stop in encoded.whole:
        cuts[begin + 1 : stop] = False
    known = None if related is None else np.repeat(np.array(related, dtype=np.int8), np.diff(encoded.edges))
    return Flat(np.array(encoded.ids, dtype=np.int32), weight, encoded.placed, cuts, known)


def _as_seen(segments: Iterable[Any], processor: KosmosProcessor) -> Iterator[Any]:
    """Decode pictures; boxes, which are shares of the whole picture, become shares of what the crop leaves of it.

    A phrase of which nothing is left is text like any other, and so is a text without phrases (KOSMOS-2's loader).
    """
    picture: bytes | None = None
    for segment in segments:
        if isinstance(segment, Image):
            picture = segment.data
            yield Image(decode(segment.data, processor.image_processor))
        elif isinstance(segment, Text) and segment.boxes:
            if picture is None:
                raise BadSample(errors.BOXES, "a text with boxes stands before the first picture")
            size, crop = upright_size(picture), processor.image_processor.crop
            seen = [replace(one, boxes=_in_view(one, size, crop)) for one in segment.boxes]
            kept = [new for one, new in zip(segment.boxes, seen, strict=True) if new.boxes or not one.boxes]
            yield replace(segment, boxes=tuple(kept) or None)
        else:
            yield segment


def _in_view(phrase: Phrase, size: tuple[int, int], crop: str) -> tuple[Box, ...]:
    return tuple(seen for box in phrase.boxes if (seen := to_view(box, size, crop)) is not None)
