"""The same recording, changed a little: faster or slower (Ko et al. 2015), and louder or softer."""

from __future__ import annotations

import io
import random

import numpy as np

from kosmos.media import import_av, read_sound

SLOWEST, FASTEST = 0.88, 1.14
_SOFTEST, _LOUDEST = 0.4, 1.0
_RATE = 16_000


def variant(data: bytes, seed: str, most_seconds: float) -> bytes:
    """Return a FLAC of one channel and 16,000 samples a second, played at another speed, which ``seed`` draws.

    Args:
        data: a file of sound.
        seed: the same one gives the same samples.
        most_seconds: length that the variant does not exceed; nor does ``data``.

    Raises:
        Unreadable: see ``media.read_sound``.
    """
    draw = random.Random(seed)
    samples_N = read_sound(data, _RATE, most_seconds)
    slowest = max(SLOWEST, len(samples_N) / (most_seconds * _RATE))
    count = int(len(samples_N) / draw.uniform(slowest, max(FASTEST, slowest)))
    places_M = np.linspace(0, len(samples_N) - 1, max(count, 1))
    changed_M = np.interp(places_M, np.arange(len(samples_N)), samples_N)
    loudest = float(np.abs(changed_M).max()) or 1.0
    return _flac(changed_M / loudest * draw.uniform(_SOFTEST, _LOUDEST))


def _flac(samples_N: np.ndarray) -> bytes:
    av = import_av()
    file = io.BytesIO()
    with av.open(file, "w", format="flac") as container:
        stream = container.add_stream("flac", rate=_RATE, layout="mono")
        whole = np.clip(samples_N * 2**15, -(2**15), 2**15 - 1).astype("<i2")
        frame = av.AudioFrame.from_ndarray(whole[None], format="s16", layout="mono")
        frame.rate = _RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return file.getvalue()
