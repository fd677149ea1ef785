"""Decoding never trusts a picture."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import pytest
from PIL import Image as Pictures

from kosmos.processing_kosmos import KosmosProcessor
from kosmos_data import BadSample
from kosmos_data.images import decode, open_image


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises any number of pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9_000, 30_000, 2**30])
def test_bombs_are_refused_by_their_header(side: int) -> None:
    with pytest.raises(BadSample) as caught:
        open_image(bomb(side, side))
    assert caught.value.reason == "image too large"


def test_truncated_images(make_png: Callable[..., bytes]) -> None:
    data = make_png(0, (64, 64))
    for length in (0, 7, 30, len(data) // 2, len(data) - 500):
        with pytest.raises(BadSample) as caught:
            open_image(data[:length])
        assert caught.value.reason == "image broken"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16"])
def test_every_colour_mode_becomes_three_channels(processor: KosmosProcessor, mode: str) -> None:
    buffer = io.BytesIO()
    Pictures.new(mode, (20, 30)).save(buffer, "TIFF" if mode in ("CMYK", "I;16") else "PNG")
    pixels = decode(buffer.getvalue(), processor.image_processor)
    assert (pixels.shape, pixels.dtype) == ((3, 8, 8), "uint8")
