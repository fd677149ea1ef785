"""Document → ids: the one place where ``<s>``, segments and ``</s>`` are written out for training.

Layout and loss mask of KOSMOS-1 table 21 and KOSMOS-2 ``laion2b_obj_loader.py``: no loss on ``<image>``, its slots and
``</image>``; the first trained target after an image is the first token of the text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from .. import errors
from ..document import Document, Image, Span
from ..errors import BadSample
from ..example import Flat, FlatBuilder
from ..images import decode

if TYPE_CHECKING:
    from kosmos.processing_kosmos import KosmosProcessor

Loss = Literal["all", "supervised"]


def flatten(document: Document, processor: KosmosProcessor, loss: Loss = "all", predict_image: bool = False) -> Flat:
    """Write a document out as ids with weights, decoding its images.

    Args:
        document: text and images; a text span needs an objective of its own.
        processor: tokenizer and image processor of the run.
        loss: ``all`` text, or only ``supervised`` segments (instruction tuning, KOSMOS-1 section 3.3).
        predict_image: also train the prediction of ``<image>`` itself, that is *when* a picture comes next.

    Raises:
        BadSample: an image cannot be decoded, there is nothing but ``<s>`` and ``</s>``, or nothing is trained.
        ValueError: the document holds a text span.
    """
    tokenizer = processor.tokenizer
    builder = FlatBuilder()
    builder.add([tokenizer.bos_token_id], 0.0)
    weight = 0.0
    for segment in document.segments:
        if isinstance(segment, Image):
            pixels = decode(segment.data, processor.image_processor)
            builder.add_span("image", processor.image_token_ids(), pixels, begin=float(predict_image))
            weight = float(loss == "all")
        elif isinstance(segment, Span):
            raise ValueError(f"document {document.key!r} holds a text span, which this objective does not read")
        else:
            weight = float(loss == "all" or segment.supervised)
            builder.add(processor.encode_text(segment.text), weight)
    if len(builder.ids) == 1:
        raise BadSample(errors.EMPTY, document.key)
    builder.add([tokenizer.eos_token_id], weight)
    if not any(builder.weight):
        raise BadSample(errors.UNSUPERVISED, document.key)
    return builder.build()
