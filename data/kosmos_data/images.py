"""Encoded bytes to pixels, safely: the header is believed about size before a single pixel is decoded.

A decompression bomb or a truncated file is a :class:`BadSample`, counted and skipped; it never takes the memory or the
run.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, cast

import numpy as np
import PIL.features
import PIL.Image

from kosmos.pictures import MAX_PIXELS, orientation

from . import errors
from .errors import BadSample

if TYPE_CHECKING:
    from kosmos.image_processing_kosmos import KosmosImageProcessor

# AVIF from Pillow 11.3 on, where it was built with it; a name that it does not know would end the reading of all.
_AVIF = ("AVIF",) if "avif" in PIL.features.modules and PIL.features.check("avif") else ()
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", *_AVIF, "JPEG2000", "PPM")
"""What is decoded: what the web, cameras and data sets have. Pillow reads more, of programs that few tried to break."""
_OTHERS = {b"ftypheic": "HEIC", b"ftypmif1": "HEIF", b"ftypavif": "AVIF", b"ftypavis": "AVIF"}  # by bytes 4 to 12


def decode(data: bytes, image_processor: KosmosImageProcessor) -> np.ndarray:
    """Encoded image → ``uint8`` pixels (3, S, S), resized as ``image_processor`` says.

    Raises:
        BadSample: not an image of :data:`FORMATS`, truncated, or more than ``MAX_PIXELS`` pixels by its header.
    """
    try:
        return image_processor.to_tensor(open_image(data)).numpy()
    except (BadSample, MemoryError):
        raise
    except Exception as error:  # conversion of hostile palettes and EXIF raises whatever it likes
        raise BadSample(errors.IMAGE_BROKEN, f"{type(error).__name__}: {error}") from error


def open_image(data: bytes) -> PIL.Image.Image:
    """Decode the first frame in its own colour mode; BadSample as for :func:`decode`."""
    return _read(data, whole=True)


def open_header(data: bytes) -> PIL.Image.Image:
    """As :func:`open_image`, but no pixel is decoded: format and size are known, and whether it is an image at all."""
    return _read(data, whole=False)


def upright_size(data: bytes) -> tuple[int, int]:
    """Width and height as EXIF turns the picture, by its header alone; BadSample as for :func:`decode`."""
    image = open_header(data)
    width, height = image.size
    turned = orientation(image) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)


def colour_range(rgb: PIL.Image.Image) -> int:
    """Largest difference, over the channels, between the lightest and the darkest pixel: 0 (one colour) to 255."""
    channels = cast("tuple[tuple[int, int], ...]", rgb.getextrema())
    return max(high - low for low, high in channels)


def _read(data: bytes, whole: bool) -> PIL.Image.Image:
    try:
        with warnings.catch_warnings():  # Pillow warns of what is counted here
            warnings.simplefilter("ignore")
            image = PIL.Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise BadSample(errors.IMAGE_TOO_LARGE, f"{width}×{height} pixels, the limit is {MAX_PIXELS}")
            if whole:
                image.load()
        return image
    except PIL.Image.DecompressionBombError as error:
        raise BadSample(errors.IMAGE_TOO_LARGE, str(error)) from error
    except (BadSample, MemoryError):
        raise
    except PIL.UnidentifiedImageError as error:
        raise BadSample(errors.IMAGE_BROKEN, _unknown(data)) from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error … on hostile bytes
        raise BadSample(errors.IMAGE_BROKEN, f"{type(error).__name__}: {error}") from error


def _unknown(data: bytes) -> str:
    """What else it is that no format takes; Pillow's own message is the address of an object."""
    if named := _OTHERS.get(data[4:12]):
        return f"{named}, which this Pillow does not read; convert it to JPEG, PNG or WebP"
    return f"none of {', '.join(FORMATS)}: it begins with {data[:12]!r}"
