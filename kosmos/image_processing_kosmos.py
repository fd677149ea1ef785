"""Image preprocessing: RGB, resize, centre crop, CLIP normalisation. The loader and the processor share these steps.

The loader keeps ``uint8`` (:meth:`KosmosImageProcessor.to_tensor`) and the trainer normalises on the device
(:meth:`KosmosImageProcessor.normalize`); calling the processor does both, as transformers expects.

Differs from KOSMOS-2: the release trains with a centre crop and evaluates with a square resize; here a checkpoint
states one of the two (``crop``) and uses it everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, ImageInput, make_flat_list_of_images

from .pictures import MAX_PIXELS, from_array, on_white, read_picture, upright


class KosmosImageProcessor(BaseImageProcessor):
    """Turn pictures into ``pixel_values`` (I, 3, S, S).

    Args:
        image_size: S, side of the square input in pixels.
        crop: ``center`` resizes the short side to S and crops the middle; ``none`` resizes both sides to S.
        image_mean, image_std: normalisation per channel of values in 0–1 (CLIP's by default).
    """

    model_input_names = ("pixel_values",)

    def __init__(
        self,
        image_size: int = 224,
        crop: str = "center",
        image_mean: Sequence[float] = OPENAI_CLIP_MEAN,
        image_std: Sequence[float] = OPENAI_CLIP_STD,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if crop not in ("center", "none"):
            raise ValueError(f"crop={crop!r}: choose 'center' or 'none'")
        self.image_size = image_size
        self.crop = crop
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    def to_tensor(self, image: Image.Image) -> torch.Tensor:
        """One picture as ``uint8`` (3, S, S), upright, resized with bicubic interpolation; not normalised.

        Raises:
            ValueError: the picture is empty or larger than ``MAX_PIXELS``.
            OSError: Pillow cannot decode it.
        """
        width, height = image.size
        if not 0 < width * height <= MAX_PIXELS:
            raise ValueError(f"image of {width}×{height} pixels; expected 1 to {MAX_PIXELS} pixels; make it smaller")
        image = on_white(upright(image))
        size = self.image_size
        if self.crop == "center":
            image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC) if image.size != (size, size) else image
        elif image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # a view: what makes the batch copies it once

    def normalize(self, pixels_I3SS: torch.Tensor) -> torch.Tensor:
        """``uint8`` pixels (I, 3, S, S) as normalised float32 on the same device."""
        mean, std = (by_channel(tuple(values), pixels_I3SS.device) for values in (self.image_mean, self.image_std))
        return (pixels_I3SS.float() / 255 - mean) / std

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Pictures of paths and data addresses in their own mode: transformers' own reading makes transparent black."""
        if isinstance(image_url_or_urls, list | tuple):
            return [self.fetch_images(image) for image in image_url_or_urls]
        if isinstance(image_url_or_urls, Path):
            return read_picture(image_url_or_urls)
        if isinstance(image_url_or_urls, str) and not image_url_or_urls.startswith(("http://", "https://")):
            return read_picture(image_url_or_urls)
        return super().fetch_images(image_url_or_urls)

    def preprocess(self, images: ImageInput, return_tensors: str | None = "pt", **_: Any) -> BatchFeature:
        """Pictures (PIL, arrays or tensors; nested lists are flattened) as normalised ``pixel_values`` (I, 3, S, S)."""
        flat = make_flat_list_of_images(self.fetch_images(images))
        if len(flat) == 0:
            return BatchFeature({})
        pixels = torch.stack(
            [self.to_tensor(image if isinstance(image, Image.Image) else from_array(image)) for image in flat]
        )
        return BatchFeature({"pixel_values": self.normalize(pixels)}, tensor_type=return_tensors)


@cache
def by_channel(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Return one number a channel, (1, 3, 1, 1); copied to a device once, since each copy would wait for it."""
    return torch.tensor(values, device=device).view(1, 3, 1, 1)
