"""What a model's encoders make of the pictures, sounds and spans of prompts; each distinct one is encoded once."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kosmos.modalities import IMAGE, MODALITIES, Modality, normalize_pixels
from kosmos.modeling_kosmos import KosmosModel
from kosmos.pictures import open_picture

from .prompts import file_of
from .stages import Piece

_ENCODED_TOGETHER = 64


class Features:
    """The features that were computed, and the encoders that compute those that are missing.

    Args:
        model: KosmosForConditionalGeneration, or what wraps it.
        processor: KosmosProcessor.
        most_bytes: how much memory the features may take; the least recently used go first.
        zooms: scales at which each picture is seen; its features are the mean.
    """

    def __init__(self, model: Any, processor: Any, most_bytes: int = 2 << 30, zooms: Sequence[float] = (1.0,)) -> None:
        self.processor, self.zooms = processor, zooms
        self.encoders: Any = next(part for part in model.modules() if isinstance(part, KosmosModel))
        self.device = next(model.parameters()).device
        self.dtype = model.get_input_embeddings().weight.dtype
        self.config = model.config
        self.encoded: Counter[str] = Counter()  # by modality
        self._features: OrderedDict[object, Tensor] = OrderedDict()
        self._held, self._most = 0, most_bytes

    def of(self, modality: Modality, pieces: Sequence[Piece]) -> Tensor:
        """What the decoder reads of each piece, end to end (N, D); each distinct one is encoded once.

        Raises:
            ValueError: a file that is no readable image, sound or video.
        """
        missing = list({piece.key: piece for piece in pieces if piece.key not in self._features}.values())
        fresh: dict[object, Tensor] = {}
        for start in range(0, len(missing), _ENCODED_TOGETHER):
            batch = missing[start : start + _ENCODED_TOGETHER]
            inputs = self.inputs(modality, batch)
            made = self._seen(modality, inputs)
            each = list(made) if made.ndim == 3 else made.split(modality.places(self.config, inputs))
            fresh |= zip((piece.key for piece in batch), each, strict=True)
        self.encoded[modality.name] += len(fresh)
        found_ND = torch.cat([fresh[one.key] if one.key in fresh else self._features[one.key] for one in pieces])
        self._remember([piece.key for piece in pieces], fresh)
        return found_ND

    def _seen(self, modality: Modality, inputs: dict[str, Tensor]) -> Tensor:
        """Features of a batch; of pictures the mean over the zooms."""
        if modality is not IMAGE or list(self.zooms) == [1.0]:
            return self.encoders.encode(modality, **inputs)
        pixels = inputs["pixel_values"]
        seen = [self.encoders.encode(modality, **inputs | {"pixel_values": zoomed(pixels, by)}) for by in self.zooms]
        return torch.stack(seen).mean(dim=0)

    @torch.no_grad()
    def image_embeddings(self, paths: Sequence[Path]) -> Tensor:
        """One vector an image, (N, W): the mean of the vision tower's tokens, for finding similar images."""
        vectors = []
        for start in range(0, len(paths), _ENCODED_TOGETHER):
            pieces = [Piece("image", path, path) for path in paths[start : start + _ENCODED_TOGETHER]]
            tokens_IPW = self.encoders.vision_tower(**self.inputs(MODALITIES["image"], pieces))
            vectors.append(tokens_IPW.float().mean(dim=1).cpu())
        return torch.cat(vectors)

    def inputs(self, modality: Modality, pieces: Sequence[Piece]) -> dict[str, Tensor]:
        """What the model's ``forward`` takes for these pieces, whose files are read."""
        payloads = [self._payload(modality, one.payload) for one in pieces]
        inputs = {name: tensor.to(self.device) for name, tensor in modality.stack(payloads).items()}
        return normalize_pixels(inputs, self.processor.image_processor, self.dtype)

    def _payload(self, modality: Modality, given: Any) -> Any:
        """What an encoder reads of a piece: pixels of an image's file, what the processor makes of a sound's."""
        path = file_of(given)
        if path is None:
            return given
        try:
            if given is path:
                return self.processor.image_processor.to_tensor(open_picture(path))
            return modality.payload(self.processor, given)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{path}: not a readable {modality.name} ({error}); evaluation skips nothing, mend or remove it"
            ) from error

    def _remember(self, keys: Sequence[object], fresh: dict[object, Tensor]) -> None:
        for key in keys:
            if key in self._features:
                self._features.move_to_end(key)
        self._features.update((key, value.clone()) for key, value in fresh.items())
        self._held += sum(value.nbytes for value in fresh.values())
        while self._held > self._most and len(self._features) > 1:
            self._held -= self._features.popitem(last=False)[1].nbytes


def zoomed(pixels_I3SS: Tensor, by: float) -> Tensor:
    """Pictures seen from nearer (``by`` above 1: their middle) or farther (their edges go on); the same shape."""
    if by == 1.0:
        return pixels_I3SS
    scale = torch.eye(2, 3, device=pixels_I3SS.device).div(by).expand(len(pixels_I3SS), 2, 3)
    grid = F.affine_grid(scale, list(pixels_I3SS.shape), align_corners=False).to(pixels_I3SS.dtype)
    return F.grid_sample(pixels_I3SS, grid, mode="bicubic", padding_mode="border", align_corners=False)
