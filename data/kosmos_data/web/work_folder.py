"""The folder in which a web corpus is made: what the run is, and the parts that its stages hand to each other.

``kosmos data clean`` has one of the same form.

run.json                         the WARC files and every option that decides bytes; checked when a run goes on
logs/STAGE/                      datatrove: a mark per finished task, its log and its counts
documents/00003/                 what task 3 kept: shards, manifest.npz (numbers for the selection), ledger.json
minhash/                         datatrove's signatures, buckets and clusters
selection/                       plan.npy (which document with which images, in final order), cuts, ledger.json
shards/000000.json               a finished shard's line of index.json
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from kosmos import settings
from kosmos.atomic import write_atomically
from kosmos.read_json import parse_json

from .options import WebOptions
from .rules import HeldOut

FOLDER = "work"
MISSING_IMAGES = "missing_images.txt"
"""Beside the shards: addresses of images that nobody has, of pages whose text is good; for ``kosmos data fetch``."""

_RUN = "run.json"


@dataclass(frozen=True)
class Job:
    """What a run makes of what.

    Args:
        warcs: paths of the WARC files.
        sizes: their sizes in bytes; a changed file must not meet the half-finished work on the old one.
        options: without ``execution``, which decides no byte.
        tasks: parts of the work.
    """

    warcs: list[str]
    sizes: list[int]
    options: WebOptions
    tasks: int

    def to_dict(self) -> dict[str, Any]:
        options = settings.to_dict(self.options)
        del options["execution"]
        return {"warcs": self.warcs, "sizes": self.sizes, "tasks": self.tasks, "options": options}


class Described(Protocol):
    """A job that can say what it makes of what."""

    def to_dict(self) -> dict[str, Any]:
        """Everything that decides a byte of the result."""


def open_work(out: Path, job: Described) -> Path:
    """The work folder of ``out``, new or from a run of the same job that did not finish.

    Raises:
        ValueError: ``out`` holds something else, or the work of a run with other files or options.
    """
    work = out / FOLDER
    path = work / _RUN
    if path.exists():
        before = parse_json(path.read_text(encoding="utf-8"))
        if before != (now := json.loads(json.dumps(job.to_dict()))):
            changed = ", ".join(name for name in now if before.get(name) != now[name])
            raise ValueError(f"{out} holds a run with other {changed}; give a new folder, or remove it to start anew")
        return work
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no run to go on with; give a new folder")
    work.mkdir(parents=True)
    write_atomically(path, json.dumps(job.to_dict(), indent=1, ensure_ascii=False) + "\n")
    return work


def whole_path(path: str | Path) -> str:
    """A path that means the same in a worker of another folder or machine; FileNotFoundError if nothing is there."""
    if not (whole := Path(path).resolve()).exists():
        raise FileNotFoundError(f"{whole}: no such file or folder")
    return str(whole)


def with_whole_paths(held_out: HeldOut) -> HeldOut:
    """The held-out data, each path as :func:`whole_path` has it."""
    texts, images = ([whole_path(path) for path in paths] for paths in (held_out.texts, held_out.images))
    return replace(held_out, texts=texts, images=images)


def read_job(work: Path) -> Job:
    """What :func:`open_work` wrote, in a task of the run."""
    body = read_run(work)
    return Job(body["warcs"], body["sizes"], settings.from_dict(WebOptions, body["options"]), body["tasks"])


def read_run(work: Path) -> dict[str, Any]:
    """What the job of a work folder said of itself."""
    return parse_json((work / _RUN).read_text(encoding="utf-8"))


def task_folder(work: str, task: int) -> Path:
    """Where a task of the first stage puts its documents."""
    return Path(work) / "documents" / f"{task:05d}"


def selection_folder(work: str) -> Path:
    """Where the selection puts its plan."""
    return Path(work) / "selection"
