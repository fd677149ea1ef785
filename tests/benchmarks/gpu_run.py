"""The training run itself from shards to updates: MFU, data wait and tokens a second of ``kosmos1.yaml`` on one GPU.

``train/configs/kosmos1.yaml`` as it stands (mixing, packing, ZeRO, bf16, guards, the loop), but for a corpus made here
of random words and noisy JPEGs, a small vocabulary (FLOPs are counted with it), one GPU's rows, and a constant rate.
Read from the run's ``metrics.jsonl``, the first steps left out.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image as Picture

CONFIG = Path(__file__).parents[2] / "train" / "configs" / "kosmos1.yaml"


@dataclass(frozen=True)
class Run:
    """How large the run is."""

    steps: int = 80
    rows: int = 18
    """Of one step."""
    micro: int = 9
    workers: int = 9
    documents: int = 600
    """Of each of the three sources."""
    skipped: int = 10
    """Steps at the beginning that are not counted: blocks are compiled."""
    tiny: bool = False


TINY = Run(steps=3, rows=2, micro=1, workers=0, documents=20, skipped=1, tiny=True)


def make_corpus(root: Path, documents: int, size: int) -> None:
    """Three sources and a processor, in the shapes of the paper's: long text, captioned images, interleaved pages."""
    from kosmos import KosmosImageProcessor, KosmosProcessor, train_tokenizer
    from kosmos_data import Document, Image, Text, write_shards

    draw, noise = random.Random(0), np.random.default_rng(0)
    lexicon = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(20_000)]

    def words(count: int) -> Text:
        return Text(" ".join(draw.choices(lexicon, k=count)))

    def picture() -> Image:
        small = noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Picture.fromarray(small).resize((size, size)).save(buffer, "JPEG")
        return Image(buffer.getvalue())

    def pages(kind: str) -> Iterator[Document]:
        for index in range(documents):
            if kind == "text":
                yield Document(f"t{index}", [words(draw.randint(100, 1500))])
            else:
                count = 1 if kind == "pairs" else draw.randint(2, 5)
                length = 12 if kind == "pairs" else 120
                yield Document(f"{kind[0]}{index}", [part for _ in range(count) for part in (picture(), words(length))])

    for kind in ("text", "pairs", "interleaved"):
        write_shards(root / kind, pages(kind), max_documents=500)
    tokenizer = train_tokenizer([" ".join(lexicon)] * 2, vocab_size=8000)
    processor = KosmosProcessor(KosmosImageProcessor(image_size=size), tokenizer, num_image_tokens=64)
    processor.save_pretrained(root / "processor")


def settings_for(root: Path, run: Run) -> Any:
    """kosmos1.yaml over the made corpus."""
    from kosmos import settings
    from kosmos_train import TrainConfig

    config = settings.load(TrainConfig, CONFIG)
    for source in config.data.sources:
        source.shards = str(root / source.name)
    config.processor, config.model.vision_weights = str(root / "processor"), "random"
    config.model.compile = not run.tiny
    config.data.rows_per_step = config.data.lanes = run.rows
    config.data.rows_per_micro_batch, config.data.workers = run.micro, run.workers
    config.steps, config.optim.warmup, config.optim.schedule = run.steps, 0, "constant"
    config.checkpoint.every, config.log.tracking = run.steps + 1, []
    if run.tiny:
        config.model.preset, config.data.row_tokens, config.engine.precision = "tiny", 256, "fp32"
    return config


def training(run: Run, seconds: float) -> dict[str, float]:
    """Make the corpus, train for at most about so many seconds, and return the figures."""
    from kosmos_train import train
    from kosmos_train.loop import Loop
    from kosmos_train.runs import read_metrics

    with tempfile.TemporaryDirectory() as folder, stopped_after(seconds):
        root = Path(folder)
        make_corpus(root, run.documents, 64 if run.tiny else 224)
        with patch.object(Loop, "save", lambda loop: None):  # 20 GB and a minute for nothing
            train(settings_for(root, run), root / "run")
        return figures(read_metrics(root / "run"), run.skipped)


@contextlib.contextmanager
def stopped_after(seconds: float) -> Iterator[None]:
    """Send the signal that ends a run behind its step, again and again, as before the first step nobody listens."""
    over = threading.Event()

    def ring() -> None:
        over.wait(seconds)
        while not over.wait(1.0):
            os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    clock = threading.Thread(target=ring, daemon=True)
    clock.start()
    try:
        yield
    finally:
        over.set()
        clock.join()
        signal.signal(signal.SIGUSR1, before)


def figures(rows: list[dict[str, Any]], skipped: int) -> dict[str, float]:
    """Means over the steps behind the first ``skipped``, weighted by how long they took."""
    rows = rows[min(skipped, len(rows) // 2) :]
    seconds = sum(row["seconds"] for row in rows)

    def mean(name: str) -> float:
        return sum(row.get(name, float("nan")) * row["seconds"] for row in rows) / seconds

    return {
        "steps": float(len(rows)),
        "ms a step": 1e3 * seconds / len(rows),
        "MFU %": 100 * mean("mfu"),
        "data wait %": 100 * mean("data_wait"),
        "tokens/s": mean("tokens_per_second"),
        "images/s": sum(row["images"] for row in rows) / seconds,
        "memory GiB": max(row.get("memory_gb", 0.0) for row in rows),
    }
