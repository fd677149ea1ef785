"""The steps of ``kosmos data clean``, as datatrove runs them: filter, select, write the shards, finish.

Between the first two, datatrove's minhash finds near-duplicate texts. Documents stay where they are until the shards
are written; a step hands on numbers. Every step writes whole files or none: it can be killed and run again.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from heapq import merge
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from kosmos.atomic import whole_folder, write_atomically

from ..document import Document
from ..errors import BadSample
from ..reader import Corpus
from ..web.draft import page_example
from ..web.ledger import DOCUMENTS, Ledger, read_ledger
from ..web.minhash import read_clusters
from ..web.stages import cut, index_shards, read_manifests, write_shard
from ..web.work_folder import selection_folder, task_folder
from .filters import Filters, source_of
from .left_out import LEFT_OUT_NAME, Verdict, line
from .manifest import Manifest
from .selection import REASONS, Selection, select
from .source import Job, open_corpus, read_job, skipped

SOURCES_NAME = "sources.json"
_MOST_SOURCES = 1000  # names that are counted; a field with more names is no field of sources


@dataclass
class Filter:
    """This task's documents → verdicts, and the numbers of what is left; yields its texts for minhash."""

    work: str

    def __call__(self, data: None, rank: int, world_size: int) -> Iterator[Any]:
        from datatrove.data import Document as PlainText

        job = read_job(self.work)
        corpus = open_corpus(self.work, job)
        filters, ledger = Filters(job.options), Ledger(job.options.examples, (DOCUMENTS,))
        manifest, sources = Manifest(rank, job.options.duplicates.ngram), Counter[str]()
        with (
            whole_folder(task_folder(self.work, rank)) as folder,
            (folder / LEFT_OUT_NAME).open("w", encoding="utf-8") as lines,
        ):
            for number in range(len(corpus) * rank // job.tasks, len(corpus) * (rank + 1) // job.tasks):
                ledger.enter(DOCUMENTS)
                document = _readable(corpus, number, ledger, lines)
                if document is None:
                    continue
                _count_source(sources, source_of(document.meta, job.options.source_field))
                verdict, pictures = filters.run(document)
                if verdict is not None:
                    _drop(verdict, number, document, ledger, lines)
                    continue
                near = manifest.add(number, document, pictures)
                yield PlainText(document.text if near else "", document.key)  # a text each, so that numbers agree
            manifest.write(folder)
            ledger.write(folder)
            (folder / SOURCES_NAME).write_text(json.dumps(sources), encoding="utf-8")


@dataclass
class Select:
    """All manifests and clusters → ``selection/``: numbers of the documents that stay, the ledger, what was left out.

    Args:
        work: the work folder.
        clusters: what minhash found.

    Raises:
        ValueError: sources are to be left out, and no document names its source.
    """

    work: str
    clusters: str

    def __call__(self, data: None, rank: int, world_size: int) -> None:
        job = read_job(self.work)
        sources = self._sources(job)
        documents, pictures = read_manifests(self.work, job.tasks)
        clusters = read_clusters(self.clusters, documents["task"])
        chosen = select(documents, pictures, clusters, job.options.duplicates if job.options.near_duplicates else None)
        with whole_folder(selection_folder(self.work)) as folder:
            ledger = self._ledger(job)
            _account(ledger, open_corpus(self.work, job), documents, chosen, folder / "duplicates.jsonl")
            ledger.check()
            ledger.write(folder)
            _join_lines(self.work, job.tasks, folder)
            kept = documents[chosen.kept]
            np.save(folder / "plan.npy", kept["number"])
            cuts = cut(kept["bytes"].tolist(), job.options.documents_per_shard, job.options.bytes_per_shard)
            (folder / "cuts.json").write_text(json.dumps(cuts))
            (folder / SOURCES_NAME).write_text(json.dumps(sources), encoding="utf-8")

    def _sources(self, job: Job) -> dict[str, int]:
        """Number of documents by the name of their source."""
        counts = Counter[str]()
        for task in range(job.tasks):
            counts.update(json.loads((task_folder(self.work, task) / SOURCES_NAME).read_text(encoding="utf-8")))
        if job.options.leave_out and not counts:
            where = f"the field {job.options.source_field!r}" if job.options.source_field else "a field that I know"
            raise ValueError(
                f"leave_out={job.options.leave_out}: no document names its source in {where} of its meta; "
                "source_field=NAME takes another (kosmos data inspect shows a document's meta)"
            )
        return dict(counts.most_common())

    def _ledger(self, job: Job) -> Ledger:
        """The ledgers of all tasks, and the records that the import could not use."""
        ledger = Ledger(job.options.examples, (DOCUMENTS,))
        for task in range(job.tasks):
            ledger.merge(read_ledger(task_folder(self.work, task)))
        unusable = skipped(self.work, job)
        for reason, count in unusable.items():
            ledger.enter(DOCUMENTS, count)
            shown = unusable.examples[reason][:count]
            for where in shown:
                ledger.drop(DOCUMENTS, "reading", reason, where, partial(page_example, where, "", ""))
            ledger.drop_many(DOCUMENTS, "reading", reason, count - len(shown))
        return ledger


@dataclass
class WriteShards:
    """Every ``tasks``-th shard of the plan → ``NNNNNN.tar`` and its offsets in the corpus folder."""

    work: str
    out: str

    def __call__(self, data: None, rank: int, world_size: int) -> None:
        corpus = open_corpus(self.work, read_job(self.work))
        plan = np.load(selection_folder(self.work) / "plan.npy")
        cuts = json.loads((selection_folder(self.work) / "cuts.json").read_text())
        for shard in range(rank, len(cuts) - 1, world_size):
            numbers = plan[cuts[shard] : cuts[shard + 1]].tolist()
            write_shard(self.work, self.out, shard, (corpus[number] for number in numbers))


@dataclass
class Finish:
    """``left_out.jsonl``, ``ledger.json`` and ``index.json``; then the large parts of the work folder go."""

    work: str
    out: str

    def __call__(self, data: None, rank: int, world_size: int) -> None:
        selection = selection_folder(self.work)
        write_atomically(Path(self.out) / SOURCES_NAME, (selection / SOURCES_NAME).read_bytes())
        partial_file = Path(self.out) / f"{LEFT_OUT_NAME}.partial"
        shutil.copyfile(selection / LEFT_OUT_NAME, partial_file)
        partial_file.replace(Path(self.out) / LEFT_OUT_NAME)
        read_ledger(selection).write(self.out)
        index_shards(self.work, self.out)
        for name in ("documents", "minhash", "imported"):
            shutil.rmtree(Path(self.work) / name, ignore_errors=True)


def _readable(corpus: Corpus, number: int, ledger: Ledger, lines: TextIO) -> Document | None:
    """A document, or None where its bytes are none, which is counted."""
    try:
        return corpus[number]
    except BadSample as error:
        shard, place = corpus.locate(number)
        where = f"{corpus.shards[shard].name}, sample {place}"
        example = partial(page_example, where, "", "", error.detail)
        ledger.drop(DOCUMENTS, "reading", error.reason, f"{number}", example)
        lines.write(line(number, where, error.reason, error.detail))
        return None


def _drop(verdict: Verdict, number: int, document: Document, ledger: Ledger, lines: TextIO) -> None:
    example = partial(page_example, document.key, "", document.text, verdict.detail)
    ledger.drop(DOCUMENTS, verdict.stage, verdict.reason, f"{number} {document.key}", example)
    lines.write(line(number, document.key, verdict.reason, verdict.detail))


def _count_source(sources: Counter[str], name: str | None) -> None:
    if name is not None and (name in sources or len(sources) < _MOST_SOURCES):
        sources[name] += 1


def _account(ledger: Ledger, corpus: Corpus, documents: np.ndarray, chosen: Selection, path: Path) -> None:
    """Write the duplicates into the ledger and, in the order of the source, into a file of lines."""

    def example(number: int, instead: str) -> dict[str, Any]:
        document = corpus[number]
        return page_example(document.key, "", document.text, f"kept instead: {instead}")

    with path.open("w", encoding="utf-8") as lines:
        for row in np.flatnonzero(~chosen.kept).tolist():
            number, reason = int(documents["number"][row]), REASONS[chosen.reasons[row]]
            key, _ = corpus.files(number)
            instead, _ = corpus.files(int(documents["number"][chosen.instead[row]]))
            ledger.drop(DOCUMENTS, "duplicates", reason, f"{number} {key}", partial(example, number, instead))
            lines.write(line(number, key, reason, instead=instead))
    ledger.keep(DOCUMENTS, int(chosen.kept.sum()))


def _join_lines(work: str, tasks: int, folder: Path) -> None:
    """The lines of all tasks and of the duplicates, in the order of the source, without holding them."""

    def numbered(path: Path) -> Iterator[tuple[int, str]]:
        with path.open(encoding="utf-8") as file:
            for text in file:
                yield json.loads(text)["number"], text

    def filtered() -> Iterator[tuple[int, str]]:
        for task in range(tasks):
            yield from numbered(task_folder(work, task) / LEFT_OUT_NAME)

    duplicates = folder / "duplicates.jsonl"
    with (folder / LEFT_OUT_NAME).open("w", encoding="utf-8") as joined:
        joined.writelines(text for _, text in merge(filtered(), numbered(duplicates)))
    duplicates.unlink()
