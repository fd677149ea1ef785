"""Near-duplicate texts by datatrove's minhash: the steps that web pages and other corpora share."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.utils.hashing import HashConfig

from .rules import NearRules
from .text_quality import Words


@dataclass
class Quiet:
    """A step of datatrove without its progress bar, which would write into ours."""

    step: Any

    def __call__(self, data: None, rank: int, world_size: int) -> Any:
        with contextlib.redirect_stderr(io.StringIO()):
            return self.step(data, rank, world_size)


class Minhash:
    """The three steps of datatrove's minhash below a folder, and what they found.

    Args:
        folder: for signatures, matches and clusters.
        rules: shingles and bands.
    """

    def __init__(self, folder: Path, rules: NearRules) -> None:
        # sha1 is in every Python; datatrove's default hands text to xxhash, which since its version 4 wants bytes.
        hashing = HashConfig(precision=64, hash_fc="sha1")
        self.config = MinhashConfig(rules.ngram, rules.buckets, rules.hashes_per_bucket, hash_config=hashing)
        self.tasks = rules.buckets
        self.clusters = str(folder / "clusters")
        self._signatures, self._matches = str(folder / "signatures"), str(folder / "matches")

    def signature(self) -> Any:
        """The step behind one that yields the texts of a task, as datatrove's documents."""
        return MinhashDedupSignature(self._signatures, self.config, Words())

    def match(self) -> Any:
        """The step of a stage of ``tasks`` tasks."""
        return MinhashDedupBuckets(self._signatures, self._matches, config=self.config)

    def cluster(self) -> Any:
        """The step of a stage of one task.

        The fourth of datatrove keeps whichever document has the lower number; ours keep the same one whatever the
        numbers (``selection.py``).
        """
        return Quiet(MinhashDedupCluster(self._matches, self.clusters, self.config, save_cluster_id=True))


def read_clusters(folder: str, tasks: np.ndarray) -> np.ndarray:
    """Cluster numbers (n,) from datatrove's files of (document, cluster) pairs per task; -1 where there is none.

    Args:
        folder: ``clusters`` of :class:`Minhash`.
        tasks: (n,) task of each document, ascending; a task's documents in the order of its texts.
    """
    clusters = np.full(len(tasks), -1, dtype=np.int64)
    starts = np.searchsorted(tasks, np.arange(tasks.max(initial=0) + 1))
    for path in Path(folder).glob("*.clusters"):
        pairs = np.fromfile(path, dtype="<u4").reshape(-1, 2)
        clusters[starts[int(path.stem)] + pairs[:, 0]] = pairs[:, 1]
    return clusters
