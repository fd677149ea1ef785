"""The table of modalities: what fills the placeholders of one kind of segment, and everything that differs by kind.

::

    ids        <s> <image> i i i </image> a cat        i = the placeholder of this kind
    features               f f f                       connector(encoder(inputs)), in row-major order

Processor, batches, model, beams, training step and cost loop over ``MODALITIES``. The order of the table is part of the
model: every rank encodes in this order, so that backward reaches the encoders in one order too, whatever a rank's rows
hold. Under ZeRO-2 a gradient that arrives in another order than on the other ranks is added to the wrong one, under
ZeRO-3 all wait.

A further modality is an entry that is put here, ``MODALITIES["tone"] = Modality("tone", …)``, and its segment in
``kosmos.segments.SEGMENTS``, before a model is built; audio.py is one, with its encoder and how a processor reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .audio import AUDIO
from .encoders import SpanEncoder, build_vision_tower
from .entities import EntityEncoder, stack_entities
from .fused import FUSED
from .modality import Inputs, Modality
from .segments import Placed, TooLong
from .span_rows import SpanRows
from .tokenization_kosmos import ENTITY_SLOT, IMAGE_BEGIN, IMAGE_END, IMAGE_SLOT, SPAN_SLOT
from .video import VIDEO

TYPICAL_SPAN = 64


def _stack_images(images: Sequence[np.ndarray]) -> dict[str, Tensor]:
    """``uint8`` pixels (3, S, S) each, not normalised yet, to (I, 3, S, S)."""
    return {"pixel_values": torch.from_numpy(np.stack(images))}


def _read_images(model: Any, pixel_values: Tensor) -> Tensor:
    return model.connector(model.vision_tower(pixel_values).to(model.dtype))


def _image_places(config: Any, inputs: Inputs) -> list[int]:
    return [config.num_image_tokens] * len(inputs["pixel_values"])


def _black_image(config: Any, device: torch.device) -> dict[str, Tensor]:
    size = config.vision_config.image_size
    return {"pixel_values": torch.zeros(1, 3, size, size, device=device)}


def _span_payload(processor: Any, span: Any) -> np.ndarray | None:
    """The ids (L,) that the text encoder reads; none if the text has no token."""
    ids, limit = processor.encode_span(span.text), processor.max_span_length
    if limit is not None and len(ids) > limit:
        raise TooLong(f"the span {span.text[:40]!r} has {len(ids)} tokens, the text encoder reads {limit}; divide it")
    return np.array(ids, dtype=np.int32) if len(ids) > 1 else None


def _stack_spans(spans: Sequence[np.ndarray]) -> dict[str, Tensor]:
    """Ids (L,) each to (S, L), padded with 0 on the right, and their mask."""
    rows = [torch.from_numpy(np.asarray(ids)).long() for ids in spans]
    pad = torch.nn.utils.rnn.pad_sequence
    masks = [torch.ones_like(row) for row in rows]
    return {"span_input_ids": pad(rows, batch_first=True), "span_attention_mask": pad(masks, batch_first=True)}


def _read_spans(
    model: Any,
    span_input_ids: Tensor,
    span_attention_mask: Tensor | None = None,
    valid: Tensor | None = None,
    tokens: Tensor | None = None,
    taken: Tensor | None = None,
) -> Tensor:
    """Spans (S, L) to (N, D), one feature for every valid token after the first, or to (S, Q, D) of Q queries.

    ``valid``: see ``SpanEncoder.forward``; ``tokens`` and ``taken``: the fields of its rows.
    """
    rows = None if tokens is None or taken is None else SpanRows(tokens, taken)
    features_NC = model.span_encoder(span_input_ids, span_attention_mask, valid, rows).to(model.dtype)
    if model.config.num_span_tokens is None:
        return model.span_connector(features_NC)
    if span_attention_mask is None:
        return model.span_connector(features_NC.unflatten(0, (len(span_input_ids), -1)))
    # queries attend to one span each, so the tokens that stand end to end go back into rows
    valid_SL = span_attention_mask[:, 1:].bool()
    valid = valid_SL.flatten().nonzero().squeeze(1) if valid is None else valid
    features_SLC = features_NC.new_zeros(valid_SL.numel(), features_NC.shape[-1]).index_copy(0, valid, features_NC)
    return model.span_connector(features_SLC.view(*valid_SL.shape, -1), valid_SL)


def _valid_span_tokens(encoder: Any, inputs: Inputs) -> dict[str, Tensor]:
    """Find the valid tokens behind each span's BOS, and fewer rows for the spans, as ``read`` takes them."""
    encoder.check(inputs["span_input_ids"])
    mask_SL = inputs.get("span_attention_mask")
    if mask_SL is None:
        return {}
    rows = encoder.lay_in_rows(inputs["span_input_ids"], mask_SL)
    return {"valid": mask_SL[:, 1:].flatten().nonzero().squeeze(1)} | ({} if rows is None else rows._asdict())


def _span_places(config: Any, inputs: Inputs) -> list[int]:
    ids_SL, mask_SL = inputs["span_input_ids"], inputs.get("span_attention_mask")
    if config.num_span_tokens is not None:
        return [config.num_span_tokens] * len(ids_SL)
    return [len(ids) - 1 for ids in ids_SL] if mask_SL is None else mask_SL[:, 1:].sum(1).tolist()


def _span_of_one_token(config: Any, device: torch.device) -> dict[str, Tensor]:
    return {"span_input_ids": torch.zeros(1, 2, dtype=torch.long, device=device)}


def _typical_span(config: Any, device: torch.device) -> dict[str, Tensor]:
    """Make a span of 63 tokens and its BOS, or the longest that the encoder reads."""
    limit = config.span_encoder_config.model_config.get("max_position_embeddings", TYPICAL_SPAN)
    return {"span_input_ids": torch.zeros(1, min(limit, TYPICAL_SPAN), dtype=torch.long, device=device)}


def _span_tokens(inputs: Inputs) -> int:
    """Count what the encoder reads, each span's BOS included."""
    mask_SL = inputs.get("span_attention_mask")
    return inputs["span_input_ids"].numel() if mask_SL is None else int(mask_SL.sum())


def _known_entities(config: Any) -> str:
    known = ", ".join(f"{size:,} of the kind {kind}" for kind, size in config.entity_config.kinds.items())
    return f"It knows entities, each in one place: {known}."


IMAGE = Modality(
    name="image",
    inputs=("pixel_values",),
    config="vision_config",
    connector_config="connector_config",
    token="image_token_id",
    encoder="vision_tower",
    connector="connector",
    parts=("vision", "connector"),
    marks=(IMAGE_BEGIN, IMAGE_SLOT, IMAGE_END),
    payload=lambda processor, image: image.data,
    stack=_stack_images,
    build=build_vision_tower,
    read=_read_images,
    places=_image_places,
    smallest=_black_image,
    units=lambda inputs: len(inputs["pixel_values"]),
    size="num_image_tokens",
    plural="images",
    logged="images",
    about=lambda config: f"A vision encoder reads pictures, each of which takes {config.num_image_tokens} places.",
)
SPAN = Modality(
    name="span",
    inputs=("span_input_ids", "span_attention_mask"),
    config="span_encoder_config",
    connector_config="span_connector_config",
    token="span_token_id",
    encoder="span_encoder",
    connector="span_connector",
    parts=("spans", "spans"),
    marks=("", SPAN_SLOT, ""),
    payload=_span_payload,
    stack=_stack_spans,
    build=SpanEncoder,
    read=_read_spans,
    places=_span_places,
    smallest=_span_of_one_token,
    typical=_typical_span,
    unit="span token",
    units=_span_tokens,
    index=_valid_span_tokens,
    size="num_span_tokens",
    tokenizer="span_tokenizer",
    plural="text spans",
    logged="span_tokens",
    about=lambda config: "A bidirectional encoder reads the stretches of text that are marked as spans.",
)
ENTITY = Modality(
    name="entity",
    inputs=("entity_ids", "entity_ratings", "entity_words", "entity_word_weight"),
    config="entity_config",
    connector_config="entity_connector_config",
    token="entity_token_id",
    encoder="entity_encoder",
    connector="entity_connector",
    parts=("entities", "entities"),
    marks=("", ENTITY_SLOT, ""),
    payload=lambda processor, entity: processor.entity_row(entity),
    stack=stack_entities,
    build=EntityEncoder,
    read=lambda model, entity_ids, **targets: model.entity_connector(model.entity_encoder(entity_ids).to(model.dtype)),
    places=lambda config, inputs: [1] * len(inputs["entity_ids"]),
    smallest=lambda config, device: {"entity_ids": torch.zeros(1, dtype=torch.long, device=device)},
    units=lambda inputs: len(inputs["entity_ids"]),
    plural="entities",
    logged="entities",
    about=_known_entities,
)
MODALITIES: dict[str, Modality] = {modality.name: modality for modality in (IMAGE, SPAN, ENTITY, AUDIO, VIDEO, FUSED)}


def text_encoder(config: Any) -> Modality | None:
    """Return the modality whose encoder reads text alone, if the model that ``config`` describes has one."""
    return next((kind for kind in MODALITIES.values() if kind.tokenizer and kind.described(config) is not None), None)


READS_PERSONAS = ("entity", "span")
"""Modalities that may read who speaks (``personas`` of the processor)."""


def input_names() -> set[str]:
    """Return the names of all modalities' inputs."""
    return {name for modality in MODALITIES.values() for name in modality.inputs}


def stack_inputs(placed: Iterable[Placed]) -> dict[str, Tensor]:
    """Make a model's inputs of what was placed in its rows, row by row; a modality without any has none."""
    kept = list(placed)
    inputs: dict[str, Tensor] = {}
    for name, modality in MODALITIES.items():
        if payloads := [one.payload for one in kept if one.modality == name]:
            inputs |= modality.stack(payloads)
    return inputs


def normalize_pixels(inputs: dict[str, Any], image_processor: Any, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Return inputs whose pixels, ``uint8`` as batches bring them, are normalised on their device and of ``dtype``."""
    pixels = {name: tensor for name, tensor in inputs.items() if name.endswith("pixel_values")}
    normal = {name: image_processor.normalize(tensor) for name, tensor in pixels.items()}
    return inputs | {name: tensor if dtype is None else tensor.to(dtype) for name, tensor in normal.items()}
