"""What every test shares: no network, quiet libraries, one thread a process so that timings and results are steady."""

from __future__ import annotations

import io
import os
import wave
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import numpy as np
import pytest

hypothesis.settings.register_profile("kosmos", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("kosmos")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def processor():
    """A processor with a vocabulary trained on a few sentences, 4 places an image, 32×32 pixels."""
    from kosmos.image_processing_kosmos import KosmosImageProcessor
    from kosmos.processing_kosmos import KosmosProcessor
    from kosmos.tokenization_kosmos import train_tokenizer

    texts = [
        f"Question: what is the {a} thing? Answer: {b}\nAn image of a {b}"
        for a in ["red", "blue", "green"]
        for b in ("circle", "square")
    ]
    tokenizer = train_tokenizer(texts * 5, vocab_size=200)
    return KosmosProcessor(KosmosImageProcessor(image_size=32), tokenizer, num_image_tokens=4, max_length=256)


@pytest.fixture(scope="session")
def wav() -> Callable[..., bytes]:
    """Make the bytes of a WAV file: a tone of so many seconds, hertz and samples a second."""

    def make(seconds: float, pitch: float = 440.0, rate: int = 8000) -> bytes:
        tone = np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)
        file = io.BytesIO()
        with wave.open(file, "wb") as writer:
            writer.setparams((1, 2, rate, 0, "NONE", ""))
            writer.writeframes((20_000 * tone).astype("<i2").tobytes())
        return file.getvalue()

    return make
