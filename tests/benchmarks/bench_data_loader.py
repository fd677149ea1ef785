"""Loader against the bare work, and against webdataset, on the same shards and one core.

    python tests/benchmarks/bench_data_loader.py CORPUS PROCESSOR [--rounds 5] [--documents 2000]

CORPUS ``photos`` writes 400 captioned JPEGs of 480×360 pixels to a temporary folder and measures on those; with a
processor of 224 pixels that is what a web corpus is like.

Three programs turn the same documents into ids and pixels: a bare loop over the tar (read, decode, resize, tokenise,
nothing else), webdataset's own pipeline with the same functions and padded batches, and the loader, which also orders,
mixes, packs and makes batches. They take turns, so that a noisy machine is noisy for all; the ratios of the medians are
what counts.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice

import numpy as np
import PIL.Image
import torch
import webdataset

from kosmos.processing_kosmos import load_processor
from kosmos_data import Corpus, DataConfig, Document, Image, SourceConfig, Text, build_loader, objectives, write_shards
from kosmos_data.document import from_files
from kosmos_data.example import Example


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus")
    parser.add_argument("processor")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--row-tokens", type=int, default=512)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    processor = load_processor(arguments.processor)
    if arguments.corpus == "photos":
        processor.image_processor.image_size = 224
        arguments.corpus = make_photos(tempfile.mkdtemp())
    corpus = Corpus(arguments.corpus)
    objective = objectives.get("causal", processor)
    urls = [corpus.shard_path(shard) for shard in range(len(corpus.shards))]

    def bare() -> tuple[int, int]:
        tokens = [len(objective(corpus[index], 0)) for index in range(min(arguments.documents, len(corpus)))]
        return len(tokens), sum(tokens)

    def theirs() -> tuple[int, int]:
        samples = webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0).shuffle(1000)
        documents = samples.map(lambda sample: objective(from_files(sample["__key__"], sample), 0))
        batches = documents.batched(32, collation_fn=pad_batch)
        tokens = [int(mask.sum()) for _, mask, _ in islice(batches, arguments.documents // 32)]
        return 32 * len(tokens), sum(tokens)

    source = SourceConfig("corpus", arguments.corpus)
    config = DataConfig([source], row_tokens=arguments.row_tokens, rows_per_step=16, rows_per_micro_batch=8)
    loader = build_loader(config, processor)
    next(loader)  # fills the pools of the lanes, which a run does once

    def ours() -> tuple[int, int]:
        documents = tokens = 0
        while documents < arguments.documents:
            stats = next(loader).stats
            documents, tokens = documents + stats["documents"], tokens + stats["tokens"]
        return documents, tokens

    print(json.dumps(compare({"bare loop": bare, "webdataset": theirs, "loader": ours}, arguments.rounds), indent=1))


def pad_batch(examples: list[Example]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Ids, mask and pixels of a padded batch."""
    ids = torch.ones(len(examples), max(len(example) for example in examples), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, example in enumerate(examples):
        ids[row, : len(example)] = torch.from_numpy(example.token)
        mask[row, : len(example)] = 1
    images = [span.payload for example in examples for span in example.spans]
    return ids, mask, torch.from_numpy(np.stack(images)) if images else None


def make_photos(folder: str, count: int = 400) -> str:
    """Captioned JPEGs with the size and the smoothness of photographs."""
    rng = np.random.default_rng(0)

    def photo() -> bytes:
        small = rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)
        picture = PIL.Image.fromarray(small).resize((480, 360), PIL.Image.Resampling.BICUBIC)
        grain = rng.integers(-12, 12, (360, 480, 3))
        buffer = io.BytesIO()
        noisy = np.clip(np.asarray(picture, dtype=np.int16) + grain, 0, 255).astype(np.uint8)
        PIL.Image.fromarray(noisy).save(buffer, "JPEG", quality=85)
        return buffer.getvalue()

    caption = "a picture of the shape in the image that the house of the state made for the people"
    write_shards(folder, (Document(str(n), [Image(photo()), Text(f"{n} {caption}")]) for n in range(count)), 100)
    return folder


def compare(programs: dict[str, Callable[[], tuple[int, int]]], rounds: int) -> dict[str, dict[str, float]]:
    """Median documents and tokens per second of CPU time of each program, and its ratio to the first."""
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            start = time.process_time()
            documents, tokens = program()
            seconds = time.process_time() - start
            speeds[name].append((documents / seconds, tokens / seconds))
    first = statistics.median(speed[1] for speed in next(iter(speeds.values())))
    return {
        name: {
            "documents/s": round(statistics.median(speed[0] for speed in found), 1),
            "tokens/s": round(statistics.median(speed[1] for speed in found)),
            "ratio": round(statistics.median(speed[1] for speed in found) / first, 3),
        }
        for name, found in speeds.items()
    }


if __name__ == "__main__":
    main()
