"""Class 3 of hostile inputs: pictures that are bombs, loops, polyglots or none, through every reader of pictures."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from kosmos_data import BadSample
from kosmos_data.images import decode, upright_size

SEEDS = int(os.environ.get("KOSMOS_SEEDS", "96")) // 8
SIDES = [0, 1, 7, 8000, 60_000, 100_000, 2**31 - 1]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_bomb(rng: random.Random) -> bytes:
    """A header of any size, with few or very many bytes of pixels, or text that unpacks to a gigabyte."""
    width, height = rng.choice(SIDES), rng.choice(SIDES)
    header = struct.pack(
        ">IIBBBBB", width, height, rng.choice([1, 8, 16]), rng.choice([0, 2, 3, 6]), 0, 0, rng.choice([0, 1])
    )
    zeros = zlib.compress(bytes(rng.choice([10, 10**6, 10**8])), 9)
    text = rng.choice(
        [b"", chunk(b"zTXt", b"a\0\0" + zeros), chunk(b"iCCP", b"a\0\0" + zeros), chunk(b"tEXt", b"k\0" + b"x" * 10**6)]
    )
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + text + chunk(b"IDAT", zeros) + chunk(b"IEND", b"")


def of_pillow(form: str, size: tuple[int, int] = (40, 30), mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, form, **options)
    return file.getvalue()


def frames(rng: random.Random) -> bytes:
    """A film of many frames."""
    count = rng.choice([2, 50, 400])
    pictures = [Image.new("P", (64, 64), number % 255) for number in range(count)]
    return of_pillow(rng.choice(["GIF", "PNG", "TIFF"]), mode="P", save_all=True, append_images=pictures)


def tiff_loop(rng: random.Random) -> bytes:
    """Directories that name each other or themselves, with absurd counts."""
    entries = [(256, 4, 1, rng.choice(SIDES)), (257, 4, 1, rng.choice(SIDES)), (258, 3, rng.choice([1, 2**31]), 8)]
    entries += [(259, 3, 1, rng.choice([1, 5, 7, 32773])), (273, 4, rng.choice([1, 2**30]), 8), (279, 4, 1, 2**31)]
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8) + body + struct.pack("<I", rng.choice([8, 0, 2**31]))


def scans(rng: random.Random) -> bytes:
    """A progressive JPEG with a scan written again and again."""
    data = of_pillow("JPEG", (64, 64), progressive=True)
    at = data.rindex(b"\xff\xda")
    return data[:at] + data[at:-2] * rng.choice([2, 200, 20_000]) + data[-2:]


def exif(rng: random.Random) -> bytes:
    head = rng.choice([b"Exif\0\0II*\0\x08\0\0\0", b"Exif\0\0MM\0*", b"Exif\0\0"])
    loop = (
        struct.pack("<H", 2)
        + struct.pack("<HHII", 0x8769, 4, 1, 8)
        + struct.pack("<HHII", 0x0112, 3, 1, rng.choice([6, 99]))
    )
    return of_pillow(
        rng.choice(["JPEG", "PNG", "WEBP"]), exif=head + rng.choice([loop + b"\x08\0\0\0", rng.randbytes(200)])
    )


def text_bomb(rng: random.Random) -> bytes:
    info = PngImagePlugin.PngInfo()
    for number in range(rng.choice([1, 2000])):
        info.add_text(f"k{number}", "\x1b[2J<script>" * rng.choice([1, 100]), zip=rng.random() < 0.5)
    return of_pillow("PNG", pnginfo=info)


def no_picture(rng: random.Random) -> bytes:
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/><script>alert(1)</script></svg>'
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n"
    web = b"RIFF\xff\xff\xff\xffWEBPVP8X\x0a\0\0\0\x10\0\0\0" + b"\xff" * 6
    avif = b"\0\0\0\x20ftypavif\0\0\0\0avifmif1" + rng.randbytes(300)
    jp2 = b"\0\0\0\x0cjP  \r\n\x87\n" + rng.randbytes(200)
    ppm = rng.choice([b"P6 99999 99999 255\n", b"P5 -1 1 255\n", b"P6 1 1 0\n", b"P3 2 2 255\n" + b"9" * 10**6])
    pcx = b"\x0a\x05\x01\x08" + rng.randbytes(124)
    return rng.choice(
        [svg, eps, web, avif, jp2, ppm, pcx, b"", b"\0" * 10**6, b"GIF89a" + b"\xff" * 20, rng.randbytes(500)]
    )


def mixed(rng: random.Random) -> bytes:
    """A good picture with bytes changed, cut, or another file before or behind it."""
    data = bytearray(of_pillow(rng.choice(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF"])))
    for _ in range(rng.randint(1, 6)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(rng.choice([data, data[: rng.randrange(len(data))], data + no_picture(rng), no_picture(rng) + data]))


MAKERS = [png_bomb, frames, tiff_loop, scans, exif, text_bomb, no_picture, mixed, mixed]


@pytest.fixture(scope="module")
def doors(processor: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Callable[[bytes, Path], Any]]:
    """Loader, processor by path, bytes and address, fetcher, web path, inspection and gallery."""
    import base64

    from kosmos.media import describe, read_frames
    from kosmos.pictures import open_picture
    from kosmos_data.web.draft import thumbnail
    from kosmos_data.web.http.fetch import Refused, check_image
    from kosmos_eval.gallery import _figure

    _figure_once()  # matplotlib makes folders of its own
    record = {"prompt": "?", "prediction": "a", "answers": ["b"], "metrics": {"vqa": 0.0}}

    def counted(door: Callable[[bytes], Any], data: bytes) -> None:
        with suppress(BadSample, Refused):
            door(data)

    def chat(image: Any) -> None:
        content = [{"type": "image", "image": image}, {"type": "text", "text": "what is it?"}]
        processor.apply_chat_template([{"role": "user", "content": content}], tokenize=True, return_dict=True)

    return [
        lambda data, _: counted(lambda inner: decode(inner, processor.image_processor), data),
        lambda data, _: counted(upright_size, data),
        lambda data, _: counted(check_image, data),
        lambda data, _: counted(thumbnail, data),
        lambda data, _: open_picture(data),
        lambda data, _: describe(data),
        lambda data, _: read_frames(data, 4),
        lambda data, path: (path.write_bytes(data), chat(str(path))),
        lambda data, _: chat("data:image/png;base64," + base64.b64encode(data).decode()),
        lambda data, path: (path.write_bytes(data), _figure([record], [path])),
    ]


def _figure_once() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure()
    FigureCanvasAgg(figure).draw()
    figure.suptitle("a")
    figure.draw_without_rendering()


def test_pictures(tmp_path: Path, use: Callable[..., str], doors: list[Callable[[bytes, Path], Any]]) -> None:
    outcomes = set()
    for seed in range(SEEDS):
        rng = random.Random(f"picture {seed}")
        make = rng.choice(MAKERS)
        data = make(rng)
        for number, door in enumerate(rng.sample(doors, 3)):
            outcomes.add(use((seed, make.__name__, number), door, data, tmp_path / "picture.png")[:12])
    assert "used" in outcomes
    assert len(outcomes) > 1


def test_the_square_of_a_line_is_small() -> None:
    from kosmos_eval.gallery import _square

    assert max(_square(Image.new("RGB", (1, 60_000))).size) <= 1024
    assert _square(Image.new("RGB", (30, 40))).size == (40, 40)
