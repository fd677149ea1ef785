"""Loader against the bare work, and against webdataset, on the same shards and one core.

    nice -n -19 python tests/benchmarks/bench_data_loader.py CORPUS PROCESSOR [--rounds 7] [--documents 400]

CORPUS ``photos`` writes 400 captioned JPEGs of 480×360 pixels to a temporary folder and measures on those; with a
processor of 224 pixels that is what a web corpus is like.

Three programs turn documents into ids and pixels. ``bare loop``: read, then Pillow's open, convert (on white where a
picture is transparent) and fit, and the tokenizer's call, as anyone would write it. ``webdataset``: its own pipeline
(read, shuffle, the same work, padded batches). ``loader``: ours, which also orders, mixes, packs, and makes batches for
training. They take turns, and read other documents in each round; the median of the rounds' ratios is what counts, in
CPU time of this process.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
import webdataset

from kosmos.processing_kosmos import KosmosProcessor, load_processor
from kosmos_data import Corpus, DataConfig, Document, Image, SourceConfig, Text, build_loader, write_shards
from kosmos_data.document import from_files


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus")
    parser.add_argument("processor")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--documents", type=int, default=400)
    parser.add_argument("--row-tokens", type=int, default=512)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    processor = load_processor(arguments.processor)
    if arguments.corpus == "photos":
        processor.image_processor.image_size = 224
        arguments.corpus = make_photos(tempfile.mkdtemp())
    corpus = Corpus(arguments.corpus)
    prepare = plainly(processor)
    urls = [corpus.shard_path(shard) for shard in range(len(corpus.shards))]
    draw = random.Random(0)

    def bare() -> tuple[int, int]:
        chosen = sorted(draw.sample(range(len(corpus)), min(arguments.documents, len(corpus))))
        tokens = [len(prepare(corpus[index])[0]) for index in chosen]
        return len(tokens), sum(tokens)

    def theirs() -> tuple[int, int]:
        samples = webdataset.WebDataset(urls, shardshuffle=len(urls), seed=draw.randrange(2**31)).shuffle(1000)
        documents = samples.map(lambda sample: prepare(from_files(sample["__key__"], sample)))
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


def plainly(processor: KosmosProcessor) -> Callable[[Document], tuple[list[int], list[np.ndarray]]]:
    """Document → ids and pixels, with nothing but Pillow and the tokenizer."""
    size, tokenizer, image_ids = processor.image_processor.image_size, processor.tokenizer, processor.image_token_ids()

    def prepare(document: Document) -> tuple[list[int], list[np.ndarray]]:
        ids, pixels = [tokenizer.bos_token_id], []
        for segment in document.segments:
            if isinstance(segment, Image):
                picture = PIL.Image.open(io.BytesIO(segment.data))
                if picture.has_transparency_data:
                    white = PIL.Image.new("RGBA", picture.size, "white")
                    picture = PIL.Image.alpha_composite(white, picture.convert("RGBA"))
                fitted = PIL.ImageOps.fit(picture.convert("RGB"), (size, size), PIL.Image.Resampling.BICUBIC)
                pixels.append(np.array(fitted).transpose(2, 0, 1))
                ids += image_ids
            else:
                ids += tokenizer(segment.text, add_special_tokens=False)["input_ids"]
        return ids, pixels

    return prepare


def pad_batch(
    examples: list[tuple[list[int], list[np.ndarray]]],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Ids, mask and pixels of a padded batch."""
    ids = torch.ones(len(examples), max(len(tokens) for tokens, _ in examples), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, (tokens, _) in enumerate(examples):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
    images = [image for _, pixels in examples for image in pixels]
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
    """Median documents and tokens per second of CPU time, and the median over rounds of the ratio to the first."""
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            start = time.process_time()
            documents, tokens = program()
            seconds = time.process_time() - start
            speeds[name].append((documents / seconds, tokens / seconds))
    first = next(iter(speeds.values()))
    return {
        name: {
            "documents/s": round(statistics.median(speed[0] for speed in found), 1),
            "tokens/s": round(statistics.median(speed[1] for speed in found)),
            "ratio": round(statistics.median(speed[1] / base[1] for speed, base in zip(found, first, strict=True)), 3),
        }
        for name, found in speeds.items()
    }


if __name__ == "__main__":
    main()
