"""``kosmos data web``: WARC files → filtered, deduplicated, interleaved documents in shards.

Six stages on a datatrove executor: find the images in the WARC files; extract and filter their pages; match minhash
buckets; select what stays; write the shards; finish. The shards are the same byte for byte for any number of tasks and
workers, any executor and after any kill: documents are ordered by the hash of their address, and every choice between
duplicates is a function of their content (``selection.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.progress import Progress

from kosmos.plain import pasted

from .. import errors, extras
from .ledger import IMAGES, PAGES, Ledger, read_ledger
from .options import WebOptions
from .work_folder import MISSING_IMAGES, Job, open_work, whole_path, with_whole_paths


def run(
    warcs: Sequence[str | Path], out: str | Path, options: WebOptions | None = None, progress: Progress | None = None
) -> Ledger | None:
    """Make a corpus of web pages, or go on with one that was interrupted.

    Args:
        warcs: WARC files (``.warc`` or ``.warc.gz``); their order does not matter.
        out: folder for the shards, the ledger, and a folder ``work`` that may be deleted afterwards.
        options: thresholds and execution.
        progress: gets a bar per stage.

    Returns:
        The ledger; None when the work was handed to Slurm and is not finished.

    Raises:
        FileNotFoundError: a WARC file or the image folder does not exist.
        ValueError: no file given, or twice the same; ``out`` holds something else; no page was left.
        RuntimeError: tasks failed; the message names their logs.
        ModuleNotFoundError: the packages of the extra ``web`` are missing.
    """
    options = options or WebOptions()
    job = _job(warcs, options)
    with extras.hint():
        from . import executors
    out = Path(out).resolve()
    work = open_work(out, job)
    stages = _stages(work, out, job)
    progress = progress or Progress(disable=True)
    if not executors.is_done(stages[-1], work) and not executors.run_stages(stages, work, options.execution, progress):
        return None
    ledger = read_ledger(out)
    if not ledger.kept[PAGES]:
        if not ledger.entered[PAGES]:
            raise ValueError(f"no page in {', '.join(job.warcs[:3])}: is this a WARC file with HTML responses?")
        hint = f"see: kosmos data report {pasted(out)}"
        if missing_images := ledger.count(IMAGES, errors.IMAGE_MISSING):
            fetch = f"kosmos data fetch {pasted(out / MISSING_IMAGES)} --out FOLDER"
            hint = f"{missing_images} images were nowhere: {fetch}; {hint}"
        raise ValueError(f"no page of {ledger.entered[PAGES]} was left; {hint}")
    return ledger


def _job(warcs: Sequence[str | Path], options: WebOptions) -> Job:
    # By name, so that a run given the same files in another order goes on.
    paths = sorted(map(whole_path, warcs))
    if not paths:
        raise ValueError("no WARC file given")
    if len(set(paths)) < len(paths):
        raise ValueError(f"{next(a for a, b in pairwise(paths) if a == b)} is given twice")
    folder = whole_path(options.image_folder) if options.image_folder else None
    options = replace(options, image_folder=folder, held_out=with_whole_paths(options.held_out))
    return Job(paths, [Path(path).stat().st_size for path in paths], options, options.tasks or len(paths))


def _stages(work: Path, out: Path, job: Job) -> list[Any]:
    from .executors import Stage
    from .minhash import Minhash
    from .sources import IndexImages
    from .stages import Extract, Finish, Select, WriteShards

    minhash = Minhash(work / "minhash", job.options.duplicates)
    here = str(work)
    return [
        Stage("1-index", [IndexImages(here)], job.tasks),
        Stage("2-extract", [Extract(here), minhash.signature()], job.tasks),
        Stage("3-match", [minhash.match()], minhash.tasks),
        Stage("4-select", [minhash.cluster(), Select(here, minhash.clusters)], 1),
        Stage("5-shards", [WriteShards(here, str(out))], job.tasks),
        Stage("6-finish", [Finish(here, str(out))], 1),
    ]
