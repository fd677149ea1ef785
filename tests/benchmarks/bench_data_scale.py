"""Does the loader stay small and exact at scale: start-up of a large index, memory over many samples, token shares,
how full rows are.

    python tests/benchmarks/bench_data_scale.py index   PROCESSOR [--shards 10000]
    python tests/benchmarks/bench_data_scale.py memory  PROCESSOR [--samples 1000000]
    python tests/benchmarks/bench_data_scale.py shares  PROCESSOR STARTER [--tokens 3000000]
    python tests/benchmarks/bench_data_scale.py filled  PROCESSOR corpora/docs/train --tokens 600000

PROCESSOR is a folder with tokenizer and image processor, STARTER the corpus of ``kosmos data make starter``.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from kosmos.processing_kosmos import load_processor
from kosmos_data import DataConfig, Document, SourceConfig, Text, build_loader, write_shards
from kosmos_data.index import ShardInfo, write_index

WEIGHTS = {"text": 0.5, "pairs": 0.5, "interleaved": 0.2}  # KOSMOS-1's


def index(arguments: argparse.Namespace, processor: Any) -> None:
    """Seconds from the settings to the first batch, over many shards of one document."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_shards(root / "one", [Document("only", [Text("x")])])
        tar, offsets = (root / "one/000000.tar").read_bytes(), (root / "one/000000.tar.idx").read_bytes()
        for number in range(arguments.shards):
            (root / f"{number:06d}.tar").write_bytes(tar)
            (root / f"{number:06d}.tar.idx").write_bytes(offsets)
        write_index(root, [ShardInfo(f"{n:06d}.tar", len(tar), "0" * 64, 1, 0, 1) for n in range(arguments.shards)])
        start = time.perf_counter()
        loader = build_loader(DataConfig([SourceConfig("c", name)], 64, 2, 2), processor)
        opened = time.perf_counter()
        next(loader)
        done = time.perf_counter()
        print(f"{arguments.shards} shards: opened in {opened - start:.2f} s, first batch {done - opened:.2f} s")


def memory(arguments: argparse.Namespace, processor: Any) -> None:
    """Peak memory after each tenth of the samples."""
    with tempfile.TemporaryDirectory() as name:
        write_shards(Path(name) / "c", (Document(str(n), [Text(f"word {n}")]) for n in range(20_000)), 2_000)
        config = DataConfig([SourceConfig("c", f"{name}/c")], 256, 64, 64, packing="cut")
        read, mark = 0, 0
        for batch in build_loader(config, processor):
            read += batch.stats["documents"]
            if read >= min(mark + arguments.samples // 10, arguments.samples):
                mark = read
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                print(f"{read} samples: peak {peak:.0f} MiB", flush=True)
            if read >= arguments.samples:
                return


def shares(arguments: argparse.Namespace, processor: Any) -> None:
    """Difference of each source's token share from its weight, in percent, per million tokens and in all."""
    total = sum(WEIGHTS.values())
    sources = [SourceConfig(name, f"{arguments.starter}/{name}", weight) for name, weight in WEIGHTS.items()]
    for packing in ("best_fit", "concat"):
        used: Counter[str] = Counter()
        before: Counter[str] = Counter()
        positions = 0
        for batch in build_loader(DataConfig(sources, 512, 16, 16, packing=packing), processor):  # type: ignore[arg-type]
            used.update(batch.stats["source_tokens"])
            positions += batch.stats["positions"]
            if used.total() - before.total() >= 1_000_000:
                window, before = used - before, used.copy()
                off = {
                    name: f"{100 * (window[name] / window.total() - weight / total):+.3f} % "
                    f"(all {100 * (used[name] / used.total() - weight / total):+.3f} %)"
                    for name, weight in WEIGHTS.items()
                }
                print(packing, used.total(), off, f"filled {used.total() / positions:.4f}", flush=True)
            if used.total() >= arguments.tokens:
                break


def filled(arguments: argparse.Namespace, processor: Any) -> None:
    """Share of tokens that are not padding when one corpus is read alone."""
    for row_tokens in (512, 1024, 2048):
        for packing in ("best_fit", "concat"):
            config = DataConfig([SourceConfig("corpus", arguments.starter)], row_tokens, 16, 8, packing=packing)
            tokens = positions = 0
            for batch in build_loader(config, processor):
                tokens, positions = tokens + batch.stats["tokens"], positions + batch.stats["positions"]
                if tokens >= arguments.tokens:
                    break
            print(f"rows of {row_tokens}, {packing}: {tokens} tokens, filled {tokens / positions:.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("index", "memory", "shares", "filled"))
    parser.add_argument("processor")
    parser.add_argument("starter", nargs="?", help="the starter corpus (shares); any corpus (filled)")
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--tokens", type=int, default=3_000_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    programs = {"index": index, "memory": memory, "shares": shares, "filled": filled}
    programs[arguments.what](arguments, load_processor(arguments.processor))


if __name__ == "__main__":
    main()
