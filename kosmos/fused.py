"""The modality of an image with a text, read together by one encoder: MetaLM's vision-language encoder.

::

    image ── fused_pixels (S, 3, H, H) ──┐
                                         ├── encoder (frozen), N states of both ── connector ── num_queries places
    text ─── fused_input_ids (S, L) ─────┘

The encoder is a multiway transformer with torchscale's BEiT-3 layout (multiway.py), or any model of transformers that
reads both together (two_stream.py). The text is written by the span tokenizer of the processor, which is the encoder's
own, with the marks that it puts around a text; without one by the decoder's tokenizer, between ``<s>`` and ``</s>``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .encoder_configs import KosmosFusedConfig
from .encoders import Encoder, check_pixels, keep_initialisation
from .image_processing_kosmos import KosmosImageProcessor
from .limits import read_object
from .media import file_bytes
from .modality import Inputs, Modality, Reader
from .multiway import MultiwayTransformer
from .pictures import open_picture
from .segments import BrokenPicture, TooLong
from .two_stream import build_two_stream, read_streams

TYPICAL_TEXT = 32


class FusedEncoder(Encoder):
    """The encoder of images with texts, frozen but for its last blocks."""

    def __init__(self, config: KosmosFusedConfig) -> None:
        super().__init__()
        self.config: Any = config
        self.encoder: Any
        if config.model_config is None:
            self.encoder, self.width = MultiwayTransformer(config), config.hidden_size
            keep_initialisation(self.encoder)
        else:
            self.encoder, self.width = build_two_stream(config)
        self.freeze(config.train_last_blocks)
        self.eval()

    def forward(
        self, pixels_S3HW: Tensor, ids_SL: Tensor, valid_SL: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return states (S, N, C) of normalised images (S, 3, H, H) and texts (S, L), and which of them count, (S, N).

        Args:
            pixels_S3HW, ids_SL: an image for each text.
            valid_SL: which tokens count; None: all, and so do all states.

        Raises:
            ValueError: what ``check`` refuses.
        """
        self.check(pixels_S3HW, ids_SL)
        pixels_S3HW = pixels_S3HW.to(next(self.encoder.parameters()).dtype)
        with self.gradients():
            if self.config.model_config is None:
                return self.encoder(pixels_S3HW, ids_SL, valid_SL)
            return read_streams(self.encoder, pixels_S3HW, ids_SL, valid_SL)

    def check(self, pixels_S3HW: Tensor, ids_SL: Tensor) -> None:
        """Refuse images and texts that the encoder does not read.

        Raises:
            ValueError: pixels of another shape or not floating point, as many images as there are not texts, a text
                longer than the positions, or an id outside the vocabulary.
        """
        check_pixels(pixels_S3HW, self.config.image_size)
        if len(pixels_S3HW) != len(ids_SL):
            raise ValueError(f"fused_pixels hold {len(pixels_S3HW)} images, fused_input_ids {len(ids_SL)} texts")
        if ids_SL.shape[1] > self.config.max_text_length:
            raise ValueError(
                f"fused_input_ids are {ids_SL.shape[1]} long, but the fused encoder reads {self.config.max_text_length}"
            )
        vocabulary = self.config.vocab_size
        if ids_SL.numel() and not ids_SL.is_meta and (largest := int(ids_SL.max())) >= vocabulary:
            raise ValueError(f"fused_input_ids hold id {largest}, but the fused encoder's vocabulary is {vocabulary}")

    def after_loading(self, missing: bool) -> None:
        """Also give our own encoder its initial weights if the checkpoint had none."""
        if missing and self.config.model_config is None:
            with torch.device("cpu"):
                self.encoder.load_state_dict(MultiwayTransformer(self.config).state_dict())
        super().after_loading(missing)


@dataclass
class FusedReader(Reader):
    """How an image with a text is read.

    Attributes:
        image_size: side of the square picture, in pixels.
        image_mean, image_std: its normalisation a channel; that of BEiT-3 and ViLT by default.
        max_length: longest text, in tokens.
    """

    encoder: ClassVar[dict[str, str]] = {"image_size": "image_size"}

    image_size: int = 224
    image_mean: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    image_std: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    max_length: int = 64

    @classmethod
    def of(cls, folder: Path, **fields: Any) -> FusedReader:
        """Return the settings with what a folder of transformers says of its encoder; a file of weights says nothing.

        Raises:
            ValueError: it is no encoder of images with texts.
        """
        found: dict[str, Any] = {}
        if (described := folder / "config.json").is_file():
            config = KosmosFusedConfig(model_config=read_object(described))
            found = {"image_size": config.image_size, "max_length": config.max_text_length}
        for name in ("processor_config.json", "preprocessor_config.json"):
            if (folder / name).is_file():
                saved = read_object(folder / name)
                saved = saved.get("image_processor", saved)
                found |= {name: saved[name] for name in ("image_mean", "image_std") if name in saved}
        return cls(**{**found, **fields})

    @cached_property
    def image_processor(self) -> KosmosImageProcessor:
        """What makes pixels of a picture."""
        return KosmosImageProcessor(self.image_size, image_mean=self.image_mean, image_std=self.image_std)

    def check(self, config: Any) -> None:
        """Refuse a model whose encoder reads less text than this reader lets through."""
        if self.max_length > config.max_text_length:
            raise ValueError(
                f"readers.fused.max_length is {self.max_length}, but the fused encoder reads {config.max_text_length} "
                "tokens; make the processor with no more"
            )


class Pair(NamedTuple):
    """What the encoder reads: normalised pixels (3, H, H) and the ids (L,) of the text."""

    pixels: np.ndarray
    ids: np.ndarray


def _payload(processor: Any, fused: Any) -> Pair:
    reader = processor.reader("fused")
    ids = processor.encode_between_marks(fused.words)
    if len(ids) > reader.max_length:
        raise TooLong(
            f"the text {fused.words[:40]!r} has {len(ids)} tokens, its encoder reads {reader.max_length}; shorten it"
        )
    data = file_bytes(fused.data, "picture")
    try:
        pixels_3HH = reader.image_processor.to_tensor(open_picture(data))
    except (ValueError, OSError) as error:
        raise BrokenPicture(f"the picture of a fused segment cannot be read: {error}") from error
    return Pair(reader.image_processor.normalize(pixels_3HH[None])[0].numpy(), np.array(ids, dtype=np.int32))


def _stack(pairs: Sequence[Pair]) -> dict[str, Tensor]:
    """Texts padded with 0 on the right, (S, L), their mask, and the images (S, 3, H, H)."""
    pad = torch.nn.utils.rnn.pad_sequence
    ids = [torch.from_numpy(pair.ids).long() for pair in pairs]
    return {
        "fused_input_ids": pad(ids, batch_first=True),
        "fused_attention_mask": pad([torch.ones_like(each) for each in ids], batch_first=True),
        "fused_pixels": torch.from_numpy(np.stack([pair.pixels for pair in pairs])),
    }


def _read(
    model: Any, fused_input_ids: Tensor, fused_pixels: Tensor, fused_attention_mask: Tensor | None = None
) -> Tensor:
    """Images with texts to (S, Q, D)."""
    valid_SL = None if fused_attention_mask is None else fused_attention_mask.bool()
    states_SNC, valid_SN = model.fused_encoder(fused_pixels, fused_input_ids, valid_SL)
    return model.fused_connector(states_SNC.to(model.dtype), valid_SN)


def _check(encoder: Any, inputs: Inputs) -> dict[str, Tensor]:
    """Refuse what the encoder would."""
    encoder.check(inputs["fused_pixels"], inputs["fused_input_ids"])
    return {}


def _smallest(config: Any, device: torch.device, length: int = 1) -> dict[str, Tensor]:
    size = config.fused_config.image_size
    return {
        "fused_input_ids": torch.zeros(1, length, dtype=torch.long, device=device),
        "fused_pixels": torch.zeros(1, 3, size, size, device=device),
    }


def _typical(config: Any, device: torch.device) -> dict[str, Tensor]:
    return _smallest(config, device, min(TYPICAL_TEXT, config.fused_config.max_text_length))


def _places(owner: Any, inputs: Inputs) -> list[int]:
    return [owner.places_of("fused")] * len(inputs["fused_input_ids"])


FUSED = Modality(
    name="fused",
    inputs=("fused_input_ids", "fused_attention_mask", "fused_pixels"),
    config="fused_config",
    connector_config="fused_connector_config",
    token="fused_token_id",
    encoder="fused_encoder",
    connector="fused_connector",
    parts=("fused", "fused connector"),
    marks=("<fused>", "<fused_slot>", "</fused>"),
    payload=_payload,
    stack=_stack,
    build=FusedEncoder,
    read=_read,
    places=_places,
    smallest=_smallest,
    typical=_typical,
    index=_check,
    units=lambda inputs: len(inputs["fused_input_ids"]),
    unit="image with text",
    about=lambda config: "An encoder reads a picture and a text together.",
    reader=FusedReader,
)
