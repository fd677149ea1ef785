"""A picture looks the same whichever way it comes to the model: every colour mode through every door."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from transformers import ImageTextToTextPipeline
from transformers.utils.chat_template_utils import Chat

from kosmos import KosmosForConditionalGeneration
from kosmos.chat import open_picture
from kosmos.pictures import on_white, upright
from kosmos_data.images import decode, open_image

GREY = np.tile(np.arange(32, dtype=np.float64) * 8, (32, 1))  # 0 to 248 from left to right


def _colour() -> Image.Image:
    return Image.fromarray(np.stack([GREY, GREY.T, 255 - GREY], axis=-1).astype(np.uint8))


def _half_clear(mode: str) -> Image.Image:
    image = _colour().convert("RGBA")
    image.putalpha(Image.fromarray(np.where(GREY < 128, 0, 255).astype(np.uint8)))
    return image.convert(mode)


def _lab() -> Image.Image:
    lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    return ImageCms.applyTransform(_colour(), lab)


def _clear_palette() -> Image.Image:
    image = _colour().quantize(16)
    image.info["transparency"] = image.getpixel((0, 0))
    return image


def _deep() -> Image.Image:
    return Image.fromarray((GREY * 257).astype(np.uint16))


MODES: dict[str, tuple[Callable[[], Image.Image], str]] = {
    "RGB": (_colour, "PNG"),
    "RGBA": (lambda: _half_clear("RGBA"), "PNG"),
    "LA": (lambda: _half_clear("LA"), "PNG"),
    "L": (lambda: Image.fromarray(GREY.astype(np.uint8)), "PNG"),
    "1": (lambda: Image.fromarray(GREY.astype(np.uint8)).convert("1"), "PNG"),
    "P": (lambda: _colour().quantize(16), "PNG"),
    "P, transparent": (_clear_palette, "GIF"),
    "I;16": (_deep, "PNG"),
    "F": (lambda: Image.fromarray((GREY / 255).astype(np.float32)), "TIFF"),
    "CMYK": (lambda: _colour().convert("CMYK"), "TIFF"),
    "LAB": (_lab, "TIFF"),
    "EXIF": (_colour, "JPEG"),
}


def encoded(mode: str) -> bytes:
    make, form = MODES[mode]
    buffer, more = io.BytesIO(), {}
    image = make()
    if mode == "EXIF":
        more["exif"] = Image.Exif()
        more["exif"][0x0112] = 6  # lies on its side
    if "transparency" in image.info:
        more["transparency"] = image.info["transparency"]
    image.save(buffer, form, **more)
    return buffer.getvalue()


@pytest.fixture
def run(build: Any, processor: Any) -> ImageTextToTextPipeline:
    base = build(text={"vocab_size": len(processor.tokenizer)}).config
    base.connector_config.num_queries = base.num_image_tokens = processor.num_image_tokens
    base.image_token_id = processor.image_slot_id
    return ImageTextToTextPipeline(KosmosForConditionalGeneration(base).eval(), processor=processor, device="cpu")


def pixels_by_door(data: bytes, path: Path, run: Any) -> dict[str, torch.Tensor]:
    """Normalised pixels (3, S, S) of one picture by each door."""
    processor = run.processor
    images = processor.image_processor
    address = "data:image/png;base64," + base64.b64encode(data).decode()

    def asked(part: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [{"type": "image", **part}, {"type": "text", "text": "What?"}]}]

    def chat(part: dict[str, Any]) -> torch.Tensor:
        options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
        return processor.apply_chat_template(asked(part), **options)["pixel_values"][0]

    doors = {
        "loader": images.normalize(torch.from_numpy(decode(data, images))[None])[0],
        "loader's picture": images(open_image(data))["pixel_values"][0],
        "processor": images(Image.open(path))["pixel_values"][0],
        "path": images(str(path))["pixel_values"][0],
        "Path": images(path)["pixel_values"][0],
        "data address": images(address)["pixel_values"][0],
        "conversation": images(open_picture(path))["pixel_values"][0],
        "chat part": chat({"image": Image.open(path)}),
        "chat part, path": chat({"path": str(path)}),
        "chat part, data address": chat({"url": address}),
        "pipeline": run.preprocess(Chat(asked({"image": Image.open(path)})))["pixel_values"][0],
        "pipeline, path": run.preprocess(Chat(asked({"url": str(path)})))["pixel_values"][0],
        "gallery": images(on_white(upright(Image.open(path))))["pixel_values"][0],
    }
    return {name: torch.as_tensor(pixels) for name, pixels in doors.items()}


@pytest.mark.parametrize("mode", MODES)
def test_every_door_shows_the_same_pixels(mode: str, run: Any, tmp_path: Path) -> None:
    data = encoded(mode)
    path = tmp_path / "picture"
    path.write_bytes(data)
    doors = pixels_by_door(data, path, run)
    for name, pixels in doors.items():
        assert torch.equal(pixels, doors["loader"]), name


@pytest.mark.parametrize("mode", ["I;16", "F", "L"])
def test_deep_grey_keeps_its_shades(mode: str) -> None:
    shown = np.array(on_white(open_image(encoded(mode))))[0, :, 0].astype(int)
    assert np.abs(shown - GREY[0]).max() <= 1


def test_what_is_clear_is_white_and_lab_is_coloured() -> None:
    for mode in ("RGBA", "LA"):
        assert (np.array(on_white(open_image(encoded(mode))))[:, 0] == 255).all()
    lab = np.array(on_white(open_image(encoded("LAB")))).astype(int)
    assert np.abs(lab - np.array(_colour())).mean() < 12


@pytest.mark.parametrize("image", ["nowhere.png", "data:image/png;base64,!!", "data:image/png;base64,QUJD", "a" * 5000])
def test_what_is_no_picture_is_named(image: str, run: Any) -> None:
    with pytest.raises(ValueError, match=r"is neither a file|cannot be read as an image"):
        run.processor.image_processor(image)
