"""Encoded bytes to pixels, safely: the header is believed about size before a single pixel is decoded.

A decompression bomb or a truncated file is a :class:`BadSample`, counted and skipped; it never takes memory or the run.
"""

from __future__ import annotations

import io
import warnings

import PIL.Image

from . import errors
from .errors import BadSample

MAX_PIXELS = 64_000_000
"""Largest width × height decoded: 192 MB of RGB, well above any photograph on the web."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> PIL.Image.Image:
    """Decode the first frame to RGB; transparent pixels become white.

    Raises:
        BadSample: not an image, truncated, or more than ``max_pixels`` pixels by its header.
    """
    try:
        with warnings.catch_warnings():  # Pillow warns at its own limit; ours is checked on the next lines
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
            image = PIL.Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > max_pixels:
            raise BadSample(errors.IMAGE_TOO_LARGE, f"{width}×{height} pixels, the limit is {max_pixels}")
        image.load()
        return _to_rgb(image)
    except PIL.Image.DecompressionBombError as error:
        raise BadSample(errors.IMAGE_TOO_LARGE, str(error)) from error
    except BadSample:
        raise
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever they like on hostile bytes: OSError, SyntaxError, struct.error
        raise BadSample(errors.IMAGE_BROKEN, f"{type(error).__name__}: {error}") from error


def _to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode == "RGB":
        return image
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = PIL.Image.new("RGBA", rgba.size, "white")
        return PIL.Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
