"""What a run cleans: a corpus of shards, or what ``kosmos data import`` makes of files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kosmos import settings
from kosmos.atomic import whole_folder
from kosmos.plain import pasted

from .. import adapters
from ..errors import Tally
from ..index import INDEX_NAME, is_remote
from ..reader import Corpus
from ..web.work_folder import read_run
from .options import CleanOptions

_IMPORTED = "imported"
_SKIPPED = "skipped.json"
_TASKS = 8  # of a source that is not shards


@dataclass(frozen=True)
class Job:
    """What a run makes of what.

    Args:
        source: path or address; of shards, or of files in ``options.format``.
        fingerprint: of the source; one that has changed must not meet the half-finished work on the old one.
        options: without ``execution``, which decides no byte.
        tasks: parts of the work.
    """

    source: str
    fingerprint: str
    options: CleanOptions
    tasks: int

    def to_dict(self) -> dict[str, Any]:
        """Everything that decides a byte of the result."""
        options = settings.to_dict(self.options)
        del options["execution"]
        return {"source": self.source, "fingerprint": self.fingerprint, "tasks": self.tasks, "options": options}


def make_job(source: str | Path, options: CleanOptions) -> Job:
    """The job of cleaning ``source``.

    Raises:
        FileNotFoundError: it does not exist, or a folder has tars but no index.
        ValueError: it is no corpus, or ``options.format`` is unknown.
    """
    if not options.format and (is_remote(str(source)) or (Path(source) / INDEX_NAME).exists()):
        root = str(source) if is_remote(str(source)) else str(Path(source).resolve())
        corpus = Corpus(root)
        return Job(root, corpus.fingerprint, options, min(options.tasks or len(corpus.shards), len(corpus)))
    path = Path(source).resolve()
    if not path.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    if not options.format and path.is_dir() and (below := next(path.glob(f"*/{INDEX_NAME}"), None)):
        raise ValueError(f"{source} is no corpus, but its folders are; clean one at a time: {below.parent}")
    if not options.format and path.is_dir() and next(path.glob("*.tar"), None):
        raise FileNotFoundError(
            f"{source} holds tars without {INDEX_NAME}; first run: kosmos data index {pasted(source)}"
        )
    options.format = options.format or "text"
    adapters.get(options.format)
    return Job(str(path), _sizes(path), options, options.tasks or _TASKS)


def read_job(work: str) -> Job:
    """The job of a run's work folder, in one of its tasks."""
    body = read_run(Path(work))
    options = settings.from_dict(CleanOptions, body["options"])
    return Job(body["source"], body["fingerprint"], options, body["tasks"])


def open_corpus(work: str, job: Job) -> Corpus:
    """The documents of a job, as shards."""
    return Corpus(Path(work) / _IMPORTED if job.options.format else job.source, check=False)


def skipped(work: str, job: Job) -> Tally:
    """What the import of the source could not use; empty for shards."""
    tally = Tally()
    if job.options.format:
        body = json.loads((Path(work) / _IMPORTED / _SKIPPED).read_text(encoding="utf-8"))
        for reason, (number, examples) in body.items():
            tally[reason] = number
            tally.records += number
            tally.examples[reason] = examples
    return tally


@dataclass
class Import:
    """First stage of a source that is not shards: its documents as shards in the work folder."""

    work: str

    def __call__(self, data: None, rank: int, world_size: int) -> None:
        job = read_job(self.work)
        options = job.options
        with whole_folder(Path(self.work) / _IMPORTED) as folder:
            _, tally = adapters.convert(options.format, job.source, folder, options.images, field=options.field)
            body = {reason: (tally[reason] - tally.parts[reason], tally.examples[reason]) for reason in tally}
            whole = {reason: row for reason, row in body.items() if row[0]}
            (folder / _SKIPPED).write_text(json.dumps(whole, ensure_ascii=True), encoding="utf-8")


def _sizes(path: Path) -> str:
    """A hash of the names and sizes of all files of a source."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    names = [(str(file.relative_to(path)), file.stat().st_size) for file in files]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]
