"""``kosmos data clean``: a corpus → the same without duplicates, other languages, held-out texts, unwanted sources.

The stages run on the executors of ``kosmos_data.web``: read what is not shards; filter; match minhash buckets; select;
write the shards; finish. The result is the same byte for byte for any number of tasks and workers, any executor and
after any kill. Documents keep their order, their keys and every byte.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.progress import Progress

from kosmos.plain import pasted

from .. import extras
from ..web.ledger import DOCUMENTS, Ledger, read_ledger
from ..web.options import Execution
from ..web.work_folder import open_work, selection_folder, whole_path, with_whole_paths
from .options import CleanOptions
from .source import Job, make_job


@dataclass(frozen=True)
class Cleaned:
    """What became of a corpus.

    Attributes:
        ledger: what every rule left out.
        sources: documents read by the name of their source; empty where none names it.
    """

    ledger: Ledger
    sources: dict[str, int]

    def absent(self, names: list[str]) -> list[str]:
        """Those of ``names`` that no document has as its source: mistyped, or not in this part of a corpus."""
        from .filters import plain_name

        there = set(map(plain_name, self.sources))
        return [name for name in names if plain_name(name) not in there]


def clean(
    source: str | Path, out: str | Path, options: CleanOptions | None = None, progress: Progress | None = None
) -> Cleaned | None:
    """Clean a corpus, or go on with a run that was interrupted.

    Args:
        source: folder of shards, or files in ``options.format``.
        out: folder for the shards, ``ledger.json``, ``left_out.jsonl``, and a folder ``work`` that may be deleted
            afterwards.
        options: what is left out.
        progress: gets a bar per stage.

    Returns:
        What was left out; None when the work was handed to Slurm and is not finished.

    Raises:
        FileNotFoundError: the source or held-out data do not exist.
        ValueError: the source is no corpus; ``out`` holds something else; no document was left.
        RuntimeError: tasks failed; the message names their logs.
        ModuleNotFoundError: the packages of the extra ``web`` are missing.
    """
    options = _with_whole_paths(options or CleanOptions())
    job = make_job(source, options)
    executors = _executors(options)
    out = Path(out).resolve()
    work = open_work(out, job)
    stages = [*_looking(work, job), *_writing(work, out, job)]
    progress = progress or Progress(disable=True)
    if not executors.is_done(stages[-1], work) and not executors.run_stages(stages, work, options.execution, progress):
        return None
    done = _cleaned(out, out)
    if not done.ledger.kept[DOCUMENTS]:
        raise ValueError(
            f"no document of {done.ledger.entered[DOCUMENTS]} was left; see: kosmos data report {pasted(out)}"
        )
    return done


def look(source: str | Path, options: CleanOptions | None = None, progress: Progress | None = None) -> Cleaned:
    """What :func:`clean` would leave out, without writing a corpus; on this machine, in a temporary folder."""
    options = _with_whole_paths(options or CleanOptions())
    options = replace(options, execution=Execution(workers=options.execution.workers))
    job = make_job(source, options)
    executors = _executors(options)
    with tempfile.TemporaryDirectory(prefix="kosmos-clean-") as folder:
        work = open_work(Path(folder), job)
        executors.run_stages(_looking(work, job), work, options.execution, progress or Progress(disable=True))
        return _cleaned(selection_folder(str(work)), selection_folder(str(work)))


def _executors(options: CleanOptions) -> Any:
    """What runs the stages, once it is seen that the filters can be made: a wrong name ends no half-finished run."""
    from .filters import Filters

    Filters(options)
    with extras.hint():
        from ..web import executors
    return executors


def _cleaned(ledger: Path, sources: Path) -> Cleaned:
    from .stages import SOURCES_NAME

    return Cleaned(read_ledger(ledger), json.loads((sources / SOURCES_NAME).read_text(encoding="utf-8")))


def _with_whole_paths(options: CleanOptions) -> CleanOptions:
    folder = whole_path(options.images) if options.images else None
    return replace(options, images=folder, held_out=with_whole_paths(options.held_out))


def _looking(work: Path, job: Job) -> list[Any]:
    """The stages up to the selection."""
    from ..web.executors import Stage
    from ..web.minhash import Minhash
    from .source import Import
    from .stages import Filter, Select

    minhash = Minhash(work / "minhash", job.options.duplicates)
    here = str(work)
    stages = [Stage("0-import", [Import(here)], 1)] if job.options.format else []
    return [
        *stages,
        Stage("1-filter", [Filter(here), minhash.signature()], job.tasks),
        Stage("2-match", [minhash.match()], minhash.tasks),
        Stage("3-select", [minhash.cluster(), Select(here, minhash.clusters)], 1),
    ]


def _writing(work: Path, out: Path, job: Job) -> list[Any]:
    """The stages behind it."""
    from ..web.executors import Stage
    from .stages import Finish, WriteShards

    return [
        Stage("4-shards", [WriteShards(str(work), str(out))], job.tasks),
        Stage("5-finish", [Finish(str(work), str(out))], 1),
    ]
