"""Pictures as a browser shows them: turned upright, and on white where they are transparent. Needs Pillow only.

:func:`open_picture` takes whatever a person calls a picture, at the doors where people come in. All that reads a
picture ends here, so that a model sees the same pixels whichever way a picture came.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
from pathlib import Path
from typing import Any, BinaryIO, cast

from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

_DEEP = ("I", "F")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/|data:", re.IGNORECASE)
MAX_PIXELS = 64_000_000
"""Largest width × height that is decoded: 192 MB of RGB, well above any photograph on the web; more is a bomb."""

FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""What is read of a person's files: pictures made of pixels. Pillow would start a program for some other kinds."""


def read_picture(source: str | Path) -> Image.Image:
    """The picture of a path, of a ``data:image/…;base64,`` address, or of base64 alone; in its own colour mode.

    Raises:
        ValueError: there is no such file, it is no picture, truncated, or larger than :data:`MAX_PIXELS`.
    """
    text = str(source)
    shown = text if len(text) < 100 else f"{text[:80]}…"
    if len(text) < 4096 and Path(text).is_file():
        return _decoded(Path(text), text)
    encoded = text.partition(",")[2] if text.startswith("data:image/") else text
    try:
        content = base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        what = "neither a file, nor base64 of a picture, nor an address that begins with http"
        raise ValueError(f"{shown!r} is {what}") from error
    return _decoded(io.BytesIO(content), repr(shown))


def orientation(image: Image.Image) -> int:
    """How its EXIF says that a picture is to be turned, 1 to 8; 1, not at all, where that cannot be read."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # what a stranger wrote there raises SyntaxError, struct.error …; browsers show the picture
        return 1


def upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says; ``exif_transpose`` would copy also what needs no turning."""
    if orientation(image) == 1:
        return image
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # it writes the rest of the EXIF anew
        return image


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
    return image if image.mode == "RGB" else image.convert("RGB")


def open_picture(picture: Any, name: str = "") -> Image.Image:
    """A Pillow image from a path, a file's bytes, an array or tensor (H, W, 3) or (3, H, W) of uint8, or an image.

    Args:
        name: what a message calls bytes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an image, truncated, far too large, or nothing that a picture is made of.
    """
    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, (bytes, bytearray)):
        return _decoded(io.BytesIO(picture), name or f"a picture of {len(picture)} bytes")
    if isinstance(picture, (str, Path)):
        return _decoded(existing(picture, "image"), str(picture))
    if hasattr(picture, "__array__"):
        return from_array(picture)
    raise ValueError(
        f"{picture if picture is None else type(picture).__name__} is no picture; give a path, the bytes of a file, a "
        "Pillow image, or an array (H, W, 3) of uint8"
    )


def existing(path: str | Path, what: str) -> Path:
    """The path of a file that a person named.

    Args:
        what: what the file should be, for the message.

    Raises:
        FileNotFoundError: there is none, it is a folder, or an address of the web.
    """
    given = str(path)
    if os.path.isfile(given):  # False for names that no file can have
        return Path(path)
    shown = given if len(given) < 200 else f"{given[:80]}…"
    if os.path.isdir(given):
        raise FileNotFoundError(f"{shown} is a folder; name the {what} in it")
    if address := _ADDRESS.match(given):  # of a path, where pathlib made one slash of two, as well
        raise FileNotFoundError(f"{shown}: an {address[1] or 'data'}: address is not opened; save the {what} as a file")
    raise FileNotFoundError(f"{shown}: no such {what}")


def from_array(picture: Any) -> Image.Image:
    """A Pillow image from an array or tensor (H, W, 3) or (3, H, W) of uint8; ValueError for any other."""
    import numpy as np

    array = np.asarray(picture)
    if array.ndim != 3 or 3 not in (array.shape[0], array.shape[-1]):
        raise ValueError(f"an image array must be (3, H, W) or (H, W, 3), got shape {array.shape}")
    if array.dtype != np.uint8:
        raise ValueError(f"an image array must be uint8 with values 0–255, got {array.dtype}; convert it first")
    return Image.fromarray(array if array.shape[-1] == 3 else np.moveaxis(array, 0, -1))


def as_data_uri(image: Image.Image, largest: int | None = None) -> str:
    """A picture as ``data:image/png;base64,…``, as browsers and JSON take it; no side longer than ``largest``."""
    shown = on_white(upright(image))
    if largest is not None:
        shown = shown.copy()
        shown.thumbnail((largest, largest))
    buffer = io.BytesIO()
    shown.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _decoded(file: Any, name: str) -> Image.Image:
    """Decode a file; its size is known from its header before a pixel is decoded."""
    Image.init()
    try:
        image = Image.open(file, formats=[kind for kind in FORMATS if kind in Image.OPEN])
        width, height = image.size
    except UnidentifiedImageError as error:  # its text names Python's object
        raise ValueError(f"{name} cannot be read as an image: {_instead(file)}") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error … on hostile bytes
        raise ValueError(f"{name} cannot be read as an image: {error}") from error
    if width * height > MAX_PIXELS:
        raise ValueError(f"{name} has {width}×{height} pixels, at most {MAX_PIXELS} are read; make it smaller")
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(f"{name} cannot be read as an image: {error}") from error
    return image


def _instead(file: Path | BinaryIO) -> str:
    """How a file that no decoder knows begins, or that it is empty."""
    if isinstance(file, Path):
        with file.open("rb") as opened:
            start = opened.read(12)
    else:
        file.seek(0)
        start = file.read(12)
    return f"it begins with {start!r}" if start else "it is empty"


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
