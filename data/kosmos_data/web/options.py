"""Settings of ``kosmos data web``: one YAML, typed; the thresholds are in ``rules.py``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .rules import DuplicateRules, HeldOut, ImageRules, TextRules


@dataclass
class Slurm:
    """How a stage becomes a Slurm job array.

    Args:
        partition: where to submit; needed.
        time: limit of one task, as sbatch reads it.
        memory_gb: per task.
        sbatch: further sbatch options by long name, such as ``{account: lab}``.
    """

    partition: str = ""
    time: str = "24:00:00"
    memory_gb: int = 4
    sbatch: dict[str, str] = field(default_factory=dict)


@dataclass
class Execution:
    """Where and how wide it runs. Nothing here changes a byte of the result.

    Args:
        executor: ``local`` (processes), ``slurm`` (job arrays, on a shared file system) or ``ray`` (the cluster that
            ``ray.init`` finds, else one on this machine).
        workers: tasks at a time; 0: as many as cores (local), as tasks (others).
        tasks_per_job: tasks that one element of a Slurm array, or one Ray task, takes one after the other.
        ray_memory_gb: what a Ray task asks for.
        slurm: for ``slurm``.
    """

    executor: Literal["local", "slurm", "ray"] = "local"
    workers: int = 0
    tasks_per_job: int = 1
    ray_memory_gb: float = 2.0
    slurm: Slurm = field(default_factory=Slurm)

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}; 0 means as many as there are cores or tasks")


@dataclass
class WebOptions:
    """From WARC files to shards.

    Args:
        image_folder: what ``kosmos data fetch`` filled; images of the WARCs themselves are found without it.
        text, images, held_out, duplicates: the filters.
        tasks: parts of the work, each done again whole when it fails; 0: one per WARC file.
        documents_per_shard: a shard is full with so many documents …
        bytes_per_shard: … or so many bytes, whichever comes first.
        examples: dropped pages, images and paragraphs kept per rule in the ledger.
        execution: where it runs.
    """

    image_folder: str | None = None
    text: TextRules = field(default_factory=TextRules)
    images: ImageRules = field(default_factory=ImageRules)
    held_out: HeldOut = field(default_factory=HeldOut)
    duplicates: DuplicateRules = field(default_factory=DuplicateRules)
    tasks: int = 0
    documents_per_shard: int = 10_000
    bytes_per_shard: int = 500_000_000
    examples: int = 8
    execution: Execution = field(default_factory=Execution)
