"""MFU and data wait of a real run of the 1.6B model on one GPU, from shards to updates, in one command.

    PYTHONPATH=.:data:train:eval python tests/benchmarks/bench_train_gpu.py [--steps 260] [--rows 24] [--micro 8]

Without the PYTHONPATH where kosmos is installed. Beside torch (2.11 was tried), transformers (from 5.16.1 on), timm,
torchvision, sentencepiece and rich it needs deepspeed (hjson, pydantic), open_clip_torch (ftfy), webdataset
(braceexpand), jsonargparse and, for Triton's launcher, a C compiler.

``train/configs/kosmos1.yaml`` as it stands (mixing, packing, ZeRO, bf16, guards, the loop), but for a corpus made here
of random words and noisy 224 px JPEGs, a small vocabulary (FLOPs are counted with it), one GPU's rows, and a constant
rate. Read from the run's ``metrics.jsonl``, the first ten steps left out. 260 steps are some four minutes on an H200;
an H100's 80 GB want ``--micro 4``. ``--tiny --steps 6 --rows 4 --micro 2`` tries the script on a CPU.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Picture

CONFIG = Path(__file__).parents[2] / "train" / "configs" / "kosmos1.yaml"
SKIPPED = 10


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


def settings_for(root: Path, arguments: argparse.Namespace) -> Any:
    """kosmos1.yaml over the made corpus."""
    from kosmos import settings
    from kosmos_train import TrainConfig

    config = settings.load(TrainConfig, CONFIG)
    for source in config.data.sources:
        source.shards = str(root / source.name)
    config.processor, config.model.vision_weights = str(root / "processor"), "random"
    config.model.activation_checkpointing, config.model.compile = False, not arguments.tiny
    config.data.rows_per_step = config.data.lanes = arguments.rows
    config.data.rows_per_micro_batch, config.data.workers = arguments.micro, arguments.workers
    config.steps, config.optim.warmup, config.optim.schedule = arguments.steps, 0, "constant"
    config.checkpoint.every, config.log.tracking = arguments.steps + 1, []
    if arguments.tiny:
        config.model.preset, config.data.row_tokens = "tiny", 256
    return config


def main() -> None:
    """Make the corpus once, train, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=260)
    parser.add_argument("--rows", type=int, default=24, help="rows of one step")
    parser.add_argument("--micro", type=int, default=8, help="rows of one forward pass")
    parser.add_argument("--workers", type=int, default=12, help="loader processes")
    parser.add_argument("--tiny", action="store_true", help="the tiny model, short rows: does the script work?")
    arguments = parser.parse_args()
    if not arguments.tiny and not torch.cuda.is_available():
        print("no GPU here; --tiny tries the script")
        return
    from kosmos_train import train
    from kosmos_train.loop import Loop
    from kosmos_train.runs import read_metrics

    Loop.save = lambda loop: None  # the last step's checkpoint: 20 GB and a minute for nothing
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_corpus(root, 100 if arguments.tiny else 3000, 64 if arguments.tiny else 224)
        train(settings_for(root, arguments), root / "run")
        rows = read_metrics(root / "run")[min(SKIPPED, arguments.steps // 2) :]
    seconds = sum(row["seconds"] for row in rows)
    tokens = sum(row["tokens_per_second"] * row["seconds"] for row in rows)
    wait = sum(row["data_wait"] * row["seconds"] for row in rows) / seconds
    utilisation = sum(row.get("mfu", float("nan")) * row["seconds"] for row in rows) / seconds
    images = sum(row["images"] for row in rows) / seconds
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(
        f"{device}, {os.cpu_count()} CPU cores, torch {torch.__version__}: {len(rows)} steps in {seconds:.1f} s: "
        f"MFU {100 * utilisation:.1f} % (bar 45), data wait {100 * wait:.1f} % (bar 2), "
        f"{tokens / seconds:,.0f} tokens/s, {images:,.0f} images/s, memory {rows[-1].get('memory_gb', 0):.0f} GiB"
    )


if __name__ == "__main__":
    main()
