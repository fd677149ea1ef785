"""What every test shares: no network, quiet libraries, one thread a process so that timings and results are steady."""

from __future__ import annotations

import atexit
import gc
import io
import json
import os
import random
import shutil
import struct
import sys
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import numpy as np
import pytest

from . import warm_libraries
from .warm_python import WarmPython

sys.path.append(str(Path(__file__).parent / "train"))  # whose server forks the processes of warm_libraries
import forks

gc.disable()  # until all is imported: an eighth of that time was the search of what the libraries had made

hypothesis.settings.register_profile("kosmos", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("kosmos")

# make test hands whole files to two processes, so that what a file shares is made once. These take more than a quarter
# of a minute, the first two minutes: begun last, one of them would run on alone.
LONGEST_FIRST = (
    *("test_demo.py", "train/test_engine.py", "train/test_tuning.py", "train/test_launch.py"),
    *("train/test_gradients.py", "train/test_resume.py", "train/test_pretrain.py", "train/test_configs.py"),
    *("data/test_sentences.py", "train/test_study.py", "data/web/test_executors.py", "data/test_loader.py"),
    *("train/test_checkpoint.py", "data/test_starter.py", "kosmos/test_web_chat.py", "train/test_claims.py"),
    *("data/test_kill.py", "train/test_guards.py", "test_notebook_personas.py", "eval/test_model.py"),
    *("kosmos/test_export.py", "kosmos/test_docking.py", "train/test_tuned_doors.py", "kosmos/test_native.py"),
    *("eval/test_captions.py", "train/test_learnt.py", "train/test_evaluation.py", "train/test_muon.py"),
    *("train/test_trl_examples.py", "data/test_mixing.py", "train/test_further.py", "kosmos/test_extrapolation.py"),
)


MANY = 500
"""Tests: of so many some start processes, and their server is worth a start."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, in the order of the table; all others stay as they are, behind them."""
    root = Path(__file__).parent
    places = {root / name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish() -> None:
    """What the imports have made stays to the end: no collection of garbage needs to walk over it again."""
    gc.freeze()
    gc.enable()
    atexit.register(gc.unfreeze)  # triton 3.9 reports as leaks what is not freed; pytest's own collections come before


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """With many tests some need processes, and nearly all that these import is imported here."""
    if len(session.items) > MANY and sys.platform == "linux":  # elsewhere a fork behind torch's imports is not safe
        forks.fork_the_server()


def pytest_unconfigure() -> None:
    """Nothing that a failed test has started outlives the tests."""
    warm_libraries.end()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def warm_python() -> Iterator[WarmPython]:
    """Starts Python processes sooner than an interpreter that has to import torch does."""
    python = WarmPython()
    yield python
    python.close()


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A program that runs what this interpreter would, in processes that begin with all libraries imported."""
    with warm_libraries.program(tmp_path_factory.mktemp("python") / "python") as path:
        yield path


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


@pytest.fixture(scope="session")
def stamps_cache(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """A cache of packages with Tux Paint's stamps, of which it has fourteen real recordings."""
    home = tmp_path_factory.mktemp("cache") / "packages/apt/tuxpaint-stamps-default/2022.06.04-1"
    shutil.copytree(repository / "tests/fixtures/media/stamps", home / "files/usr/share/tuxpaint/stamps")
    record = {"client": "apt", "name": "tuxpaint-stamps-default", "version": "2022.06.04-1", "bytes": 1, "sha256": ""}
    (home / "record.json").write_text(json.dumps(record))
    return home.parents[3]


@pytest.fixture(scope="session")
def spoil_weights() -> Callable[[Path, random.Random], None]:
    """Damage a safetensors file, for tests of checkpoints of strangers."""

    def spoil(path: Path, rng: random.Random) -> None:
        """Bits flipped in the header, a file cut off, a header that lies about its length, a pickle under this name."""
        data = bytearray(path.read_bytes())
        length = struct.unpack("<Q", data[:8])[0]
        match rng.randrange(6):
            case 0:
                data[8 + rng.randrange(length)] ^= 1 << rng.randrange(7)
            case 1:
                del data[rng.randrange(len(data)) :]
            case 2:
                data[:8] = struct.pack("<Q", rng.choice([0, 1, 10**9, 2**63, length + 8]))
            case 3:
                data[:] = b"\x80\x04cos\nsystem\n(S'touch /tmp/x'\ntR."
            case 4:
                raw = bytes(data[8 : 8 + length]).replace(b'"F32"', rng.choice([b'"F64"', b'"I32"', b'"XXX"']), 1)
                data[8 : 8 + length] = raw
            case _:
                data += b"\0" * 64
        path.write_bytes(data)

    return spoil
