"""Loader against the bare work, and against webdataset, on the same shards and one core.

    python tests/benchmarks/bench_data_loader.py CORPUS PROCESSOR [--rounds 5] [--documents 2000]

Three programs turn the same documents into ids and pixels: a bare loop over the tar (read, decode, resize, tokenise,
nothing else), webdataset's own pipeline with the same functions, and the loader, which also orders, mixes, packs and
makes batches. They take turns, so that a noisy machine is noisy for all; the ratios of the medians are what counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from itertools import islice

import torch
import webdataset

from kosmos.processing_kosmos import load_processor
from kosmos_data import Corpus, DataConfig, SourceConfig, build_loader, objectives
from kosmos_data.document import from_files


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus")
    parser.add_argument("processor")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--row-tokens", type=int, default=512)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    corpus, processor = Corpus(arguments.corpus), load_processor(arguments.processor)
    objective = objectives.get("causal", processor)
    urls = [corpus.shard_path(shard) for shard in range(len(corpus.shards))]

    def bare() -> tuple[int, int]:
        tokens = [len(objective(corpus[index], 0)) for index in range(min(arguments.documents, len(corpus)))]
        return len(tokens), sum(tokens)

    def theirs() -> tuple[int, int]:
        samples = webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0).shuffle(1000)
        documents = samples.map(lambda sample: objective(from_files(sample["__key__"], sample), 0))
        tokens = [len(example) for example in islice(documents, arguments.documents)]
        return len(tokens), sum(tokens)

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


def compare(programs: dict[str, Callable[[], tuple[int, int]]], rounds: int) -> dict[str, dict[str, float]]:
    """Median documents and tokens per second of CPU time of each program, and its ratio to the first."""
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            start = time.process_time()
            documents, tokens = program()
            seconds = time.process_time() - start
            speeds[name].append((documents / seconds, tokens / seconds))
    first = statistics.median(speed[0] for speed in next(iter(speeds.values())))
    return {
        name: {
            "documents/s": round(statistics.median(speed[0] for speed in found), 1),
            "tokens/s": round(statistics.median(speed[1] for speed in found)),
            "ratio": round(statistics.median(speed[0] for speed in found) / first, 3),
        }
        for name, found in speeds.items()
    }


if __name__ == "__main__":
    main()
