"""Document → ids: the one place where ``<s>``, segments and ``</s>`` are written out for training.

Layout and loss mask of KOSMOS-1 table 21 and KOSMOS-2 ``laion2b_obj_loader.py``: no loss on ``<image>``, its slots and
``</image>``; the first trained target after an image is the first token of the text. A text span is slots only, without
tokens around it, as in MetaLM: what follows is predicted at the span's last slot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from .. import errors
from ..document import Document, Image, Span, Text
from ..errors import BadSample
from ..example import Flat, FlatBuilder
from ..images import decode

if TYPE_CHECKING:
    from kosmos.processing_kosmos import KosmosProcessor

Loss = Literal["all", "supervised"]


def flatten(
    document: Document,
    processor: KosmosProcessor,
    loss: Loss = "all",
    predict_image: bool = False,
    end_turns: bool = False,
) -> Flat:
    """Write a document out as ids with weights, decoding its images and tokenising its text spans for their encoder.

    Args:
        document: text, images and text spans.
        processor: tokenizers and image processor of the run.
        loss: ``all`` text, or only ``supervised`` segments (instruction tuning, KOSMOS-1 section 3.3).
        predict_image: also train the prediction of ``<image>`` itself, that is *when* a picture comes next.
        end_turns: write ``</s>`` behind each text that is followed by a span or an image (MetaLM's demonstrations).

    Raises:
        BadSample: an image cannot be decoded, a span is longer than its encoder reads, there is nothing but ``<s>`` and
            ``</s>``, or nothing is trained.
    """
    tokenizer = processor.tokenizer
    builder = FlatBuilder()
    builder.add([tokenizer.bos_token_id], 0.0)
    weight, after_text = 0.0, False
    for segment in document.segments:
        is_text = isinstance(segment, Text)
        if end_turns and after_text and not is_text:
            builder.add([tokenizer.eos_token_id], weight)
        after_text = is_text
        weight = float(loss == "all" or (isinstance(segment, Text) and segment.supervised))
        if isinstance(segment, (Image, Span)):
            add_encoded(builder, segment, processor, document.key, predict_image)
        else:
            builder.add(processor.encode_text(segment.text), weight)
    if len(builder.ids) == 1:
        raise BadSample(errors.EMPTY, document.key)
    builder.add([tokenizer.eos_token_id], weight)
    if not any(builder.weight):
        raise BadSample(errors.UNSUPERVISED, document.key)
    return builder.build()


def add_encoded(
    builder: FlatBuilder, segment: Image | Span, processor: KosmosProcessor, key: str, predict_image: bool = False
) -> None:
    """Write what an encoder reads: an image between its tokens, or the slots of a text span."""
    if isinstance(segment, Image):
        pixels = decode(segment.data, processor.image_processor)
        builder.add_span("image", processor.image_token_ids(), pixels, begin=float(predict_image))
        return
    ids = processor.encode_span(segment.text)
    limit = processor.max_span_length
    if limit is not None and len(ids) > limit:
        raise BadSample(errors.SPAN_TOO_LONG, f"{key}: {len(ids)} tokens, the text encoder reads {limit}")
    if len(ids) > 1:
        builder.add_text_span(processor.span_slot_id, processor.span_slots(ids), ids)
