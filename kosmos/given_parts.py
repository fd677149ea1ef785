"""The parts of a message, made of what a person gives to a chat: words, pictures, sounds, films, who answers.

A file is read here and at once, so that a message holds what it was asked about even when the file is gone. What the
model has no encoder for is refused before anything is asked.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from .media import file_bytes
from .pictures import open_picture
from .segments import SEGMENTS, WRITTEN, Audio, Span, modality_name
from .turn_order import NO_WORDS

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from .modeling_kosmos import KosmosForConditionalGeneration
    from .processing_kosmos import KosmosProcessor

    Picture: TypeAlias = str | Path | bytes | Image | np.ndarray | Audio
    Part: TypeAlias = dict[str, Any]


class GivenParts:
    """Makes parts of messages for one model and its processor."""

    def __init__(self, model: KosmosForConditionalGeneration, processor: KosmosProcessor) -> None:
        self.model, self.processor = model, processor

    def question(
        self, question: str | Sequence[str | Picture], images: Sequence[Picture] | Picture | None, context: Any
    ) -> list[Part]:
        """Return the parts of a message that asks; arguments and errors are those of ``Conversation.ask``."""
        spans = [context] if isinstance(context, str) else list(context)
        if spans and not self._reads(modality_name(Span(""))):
            raise ValueError("a context was given, but this model has no text encoder; write it into the question")
        given = [] if images is None else list(images) if isinstance(images, (list, tuple)) else [images]
        asked = list(question) if isinstance(question, (list, tuple)) else [question]
        if not isinstance(question, (str, list, tuple)):
            raise ValueError(f"a question is text, or a list of texts and pictures, not {type(question).__name__}")
        if not any(isinstance(part, str) and part.strip() for part in asked):
            raise ValueError(NO_WORDS)
        shown = [*given, *(part for part in asked if not isinstance(part, str))]
        if any(not isinstance(part, tuple(SEGMENTS.values())) for part in shown):
            self._refuse_blind()
        return [
            *(self._part(image) for image in given),
            *(self._part(Span(text)) for text in spans),
            *({"type": "text", "text": part} if isinstance(part, str) else self._part(part) for part in asked),
        ]

    def persona(self, persona: Mapping[str, str | list[str]]) -> list[Part]:
        """Return the parts of a message that say who answers; ValueError where the model cannot read them."""
        parts = self.processor.persona_message(persona)
        if not all(self._reads(part["type"]) for part in parts):
            raise ValueError(
                "a persona was given, but this model was not trained with personas; write it as system text"
            )
        for part in parts:
            if part["type"] == "entity":
                self.processor.entity_row(part["entity"])
        return parts

    def file(self, path: Path, kind: str | None) -> Any:
        """Return a picture, or a segment of another kind; arguments and errors are those of ``Conversation.take``."""
        guessed = (mimetypes.guess_type(path.name)[0] or "").partition("/")[0]
        kind = kind or (guessed if guessed in self.processor.readers else None)
        return open_picture(path) if kind is None else self.segment(SEGMENTS[kind](path))

    def segment(self, segment: Any) -> Any:
        """Return a segment with the bytes of its files; errors are those of ``Conversation.readable``."""
        kind = modality_name(segment)
        if not self._reads(kind):
            raise ValueError(f"{kind} was given, but this model has no encoder of it; ask without")
        files, what = getattr(segment, "files", ()), "picture" if kind == "fused" else kind
        return replace(segment, **{name: file_bytes(getattr(segment, name), what) for name in files})

    def _part(self, given: Any) -> Part:
        if not isinstance(given, tuple(SEGMENTS.values())):
            return {"type": "image", "image": open_picture(given)}
        kind, segment = modality_name(given), self.segment(given)
        return {"type": kind, "text": segment.text} if kind in WRITTEN else {"type": kind, kind: segment}

    def _reads(self, kind: str) -> bool:
        """Whether the model has an encoder of this modality."""
        from .modalities import MODALITIES  # it imports torch

        return MODALITIES[kind].described(self.model.config) is not None

    def _refuse_blind(self) -> None:
        if self.model.config.vision_config is None:
            raise ValueError("a picture was given, but this model has no vision encoder; ask without pictures")
