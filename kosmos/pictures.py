"""Pictures as a browser shows them: turned upright, and on white where they are transparent. Needs Pillow only.

All that reads a picture ends here, so that a model sees the same pixels whichever way a picture came.
"""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path
from typing import cast

from PIL import ExifTags, Image, ImageCms, ImageOps

_DEEP = ("I", "F")
MAX_PIXELS = 64_000_000
"""Largest width × height that is decoded: 192 MB of RGB, well above any photograph on the web; more is a bomb."""


def read_picture(source: str | Path) -> Image.Image:
    """The picture of a path, of a ``data:image/…;base64,`` address, or of base64 alone; in its own colour mode.

    Raises:
        ValueError: there is no such file, it is no picture, truncated, or larger than :data:`MAX_PIXELS`.
    """
    text = str(source)
    shown = text if len(text) < 100 else f"{text[:80]}…"
    try:
        if len(text) < 4096 and Path(text).is_file():
            image = Image.open(text)
        else:
            encoded = text.partition(",")[2] if text.startswith("data:image/") else text
            image = Image.open(io.BytesIO(base64.b64decode("".join(encoded.split()), validate=True)))
        if image.width * image.height <= MAX_PIXELS:
            image.load()
    except (binascii.Error, ValueError) as error:
        what = "neither a file, nor base64 of a picture, nor an address that begins with http"
        raise ValueError(f"{shown!r} is {what}") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{shown!r} cannot be read as an image: {error}") from error
    return image


def upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says; ``exif_transpose`` would copy also what needs no turning."""
    return ImageOps.exif_transpose(image) if image.getexif().get(ExifTags.Base.Orientation, 1) != 1 else image


def on_white(image: Image.Image) -> Image.Image:
    """RGB over white, of any mode: a transparent logo must not become black on black, nor a 16-bit scan all white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _DEEP or image.mode.startswith("I;16"):
        return _eight_bits(image).convert("RGB")
    if image.mode == "LAB":
        return _lab_to_rgb().apply(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))  # as alpha_composite, to the bit, and faster
        return white
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, or of floats, as 8 bits; Pillow would cut all above 255 to white.

    What white is, the mode alone says for 16 bits. For the others it is the first of 1 (floats), 255 and 65,535 that no
    pixel is above.
    """
    is_float = image.mode == "F"
    wide = image if is_float else image.convert("I")
    high = cast("tuple[float, float]", wide.getextrema())[1]
    if image.mode not in _DEEP:
        scale = 255 / 65535
    else:
        scale = 255.0 if is_float and high <= 1 else 1.0 if high <= 255 else 255 / 65535
    return wide.point(lambda value: value * scale + 0.5).convert("L")  # both conversions cut what is behind the point


def _lab_to_rgb() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
