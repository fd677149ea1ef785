"""Pictures as a browser shows them: turned upright, and on white where they are transparent. Needs Pillow only."""

from __future__ import annotations

from PIL import ExifTags, Image, ImageOps

MAX_PIXELS = 64_000_000
"""Largest width × height that is decoded: 192 MB of RGB, well above any photograph on the web; more is a bomb."""


def upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says; ``exif_transpose`` would copy also what needs no turning."""
    return ImageOps.exif_transpose(image) if image.getexif().get(ExifTags.Base.Orientation, 1) != 1 else image


def on_white(image: Image.Image) -> Image.Image:
    """RGB over white: a transparent logo must not become black on black."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))  # as alpha_composite, to the bit, and faster
        return white
    return image if image.mode == "RGB" else image.convert("RGB")
