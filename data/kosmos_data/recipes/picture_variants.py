"""Small random changes of a picture, so that few pictures are not learnt by heart: mirror, turn, zoom, shift."""

from __future__ import annotations

import io
import math
import random

import PIL.Image

from kosmos.pictures import on_white

TURN, ZOOM, SHIFT = 12.0, 0.2, 0.08  # degrees, share of the size, share of the side


def variant(data: bytes, seed: str) -> bytes:
    """Return the picture changed by amounts that follow from ``seed``, on white, as PNG."""
    rng = random.Random(seed)
    image = on_white(PIL.Image.open(io.BytesIO(data)))
    if rng.random() < 0.5:
        image = image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    width, height = image.size
    angle, zoom = math.radians(rng.uniform(-TURN, TURN)), rng.uniform(1 - ZOOM, 1 + ZOOM)
    right, down = rng.uniform(-SHIFT, SHIFT) * width, rng.uniform(-SHIFT, SHIFT) * height
    cosine, sine = math.cos(angle) / zoom, math.sin(angle) / zoom
    # Pillow wants the map from the new picture to the old one; the centre stays where it is, but for the shift.
    x, y = width / 2, height / 2
    matrix = (cosine, sine, x - cosine * x - sine * y + right, -sine, cosine, y + sine * x - cosine * y + down)
    changed = image.transform(
        image.size, PIL.Image.Transform.AFFINE, matrix, PIL.Image.Resampling.BILINEAR, fillcolor=(255, 255, 255)
    )
    target = io.BytesIO()
    changed.save(target, "PNG")
    return target.getvalue()
