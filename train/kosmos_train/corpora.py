"""The loaders of a run: the training stream, the fixed held-out batches, and a description for the record."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from kosmos_data import DataConfig, build_loader
from kosmos_data.index import INDEX_NAME, read_index

from .config import EvalConfig
from .distributed import World

ORDER_BITS = 64


def open_loader(config: DataConfig, processor: Any, world: World, state: dict[str, Any] | None) -> Any:
    """The loader of this rank, at the beginning or where ``state`` says; all ranks fail together."""
    checked = _seen_before(config, world)
    return world.attempt(
        "opening the corpora", lambda: build_loader(config, processor, world.rank, world.size, state, checked)
    )


def _seen_before(config: DataConfig, world: World) -> set[str]:
    """Names of the sources whose folder a rank before this one sees too, and so looks after its shards.

    On a file system that all hosts share this is rank 0 alone: 64 ranks asking for the sizes of 10,000 shards each keep
    a metadata server busy for minutes. Where a host has a copy of its own, its first rank does it.
    """
    mine = {source.name: _identity(source.shards) for source in config.sources}
    before = world.gather(mine)[: world.rank]
    return {
        name for name, seen in mine.items() if seen is not None and any(seen == other.get(name) for other in before)
    }


def _identity(folder: str) -> tuple[int, ...] | None:
    """What tells the index of a folder from a copy on another file system: shared ones show all hosts the same."""
    try:
        found = os.stat(os.path.join(folder, INDEX_NAME))
    except OSError:  # remote, or missing: then opening it says so
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def held_out_batches(config: EvalConfig, processor: Any, world: World) -> list[Any]:
    """The first ``config.batches`` batches of the held-out corpora, the same at every evaluation."""
    assert config.data is not None, "TrainConfig.check() has refused this"
    loader = open_loader(config.data, processor, world, None)
    batches = [next(loader) for _ in range(config.batches)]
    loader.close()
    return batches


def describe(config: DataConfig) -> dict[str, Any]:
    """Per source: where it is, how much it holds, and a fingerprint of its index, for ``environment.json``."""
    described = {}
    for source in config.sources:
        shards, raw = read_index(source.shards)
        described[source.name] = {
            "shards": source.shards,
            "files": len(shards),
            "documents": sum(shard.documents for shard in shards),
            "images": sum(shard.images for shard in shards),
            "fingerprint": hashlib.sha256(raw).hexdigest()[:16],
        }
    return described


def order_votes(order: str) -> dict[str, float]:
    """The hash of what a rank read, one number a bit: summed over ranks, the parities are the XOR of the hashes."""
    bits = int(order, 16)
    return {f"order{bit}": float(bits >> bit & 1) for bit in range(ORDER_BITS)}


def joint_order(votes: dict[str, float]) -> str:
    """The hash of what all ranks read in a step: the same for any number of ranks and loader workers."""
    return f"{sum((int(votes[f'order{bit}']) & 1) << bit for bit in range(ORDER_BITS)):016x}"
