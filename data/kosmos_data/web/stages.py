"""The steps of the web pipeline, as datatrove runs them: extract, select, write the shards, finish.

Between the first two, datatrove's minhash makes signatures, matches and clusters. Every step takes what it needs from
the work folder (``work_folder.py``) and writes whole files or none: a task can be killed and run again at any point.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from kosmos.atomic import whole_folder, write_atomically

from .. import entity_names
from ..document import Document, Image, Segment, Text, to_files
from ..errors import BadSample
from ..index import INDEX_NAME, ShardInfo, write_index
from ..reader import Corpus
from .draft import Draft, clean, page_example
from .filters import Filters
from .ledger import PAGES, RECORDS, Ledger, read_ledger
from .minhash import read_clusters
from .selection import DOCUMENT_DTYPE, PICTURE_DTYPE, Selection, select
from .selection_ledger import account
from .sources import ImageFiles, pages
from .work_folder import MISSING_IMAGES, read_job, selection_folder, task_folder

MANIFEST = "manifest.npz"
_PLAN_DTYPE = np.dtype([("task", "<i4"), ("index", "<i4"), ("images", "<u8")])  # images: one bit for each that stays
_LARGE = 1 << 60
_OPEN_FILES = 500


@dataclass
class Extract:
    """Pages of this task's WARC files → filtered documents in ``documents/TASK``; yields their text for minhash."""

    work: str

    def __call__(self, data: None, rank: int, world_size: int) -> Iterator[Any]:
        from datatrove.data import Document as PlainText

        from ..shards import ShardWriter  # brings torch, which the other steps need not wait for

        job = read_job(Path(self.work))
        options, ledger = job.options, Ledger(job.options.examples)
        manifest = _Manifest(rank)
        with (
            whole_folder(task_folder(self.work, rank)) as folder,
            ShardWriter(folder, max_documents=_LARGE, max_bytes=_LARGE) as writer,
        ):
            source = ImageFiles(self.work, options.image_folder)
            filters = Filters(options.text, options.images, options.held_out, source)
            for draft in _drafts(job.warcs[rank :: job.tasks], ledger):
                if filters.run(draft, ledger):
                    document = draft.document()
                    writer.write(document)
                    manifest.add(document, draft)
                    yield PlainText(document.text, document.key)
            manifest.write(folder)
            ledger.write(folder)
            lines = "".join(f"{url}\n" for url in sorted(filters.missing))
            (folder / MISSING_IMAGES).write_text(lines, encoding="utf-8")


@dataclass
class Select:
    """All manifests and clusters → ``selection/``: the documents that stay, in final order, and the merged ledger."""

    work: str
    clusters: str

    def __call__(self, data: None, rank: int, world_size: int) -> None:
        job = read_job(Path(self.work))
        documents, pictures = read_manifests(self.work, job.tasks)
        clusters = read_clusters(self.clusters, documents["task"])
        chosen = select(documents, pictures, clusters, job.options.images, job.options.duplicates)
        ledger = Ledger(job.options.examples)
        for task in range(job.tasks):
            ledger.merge(read_ledger(task_folder(self.work, task)))
        account(ledger, self.work, documents, pictures, chosen)
        plan, cuts = _plan(documents, pictures, chosen, job.options.documents_per_shard, job.options.bytes_per_shard)
        with whole_folder(selection_folder(self.work)) as folder:
            np.save(folder / "plan.npy", plan)
            (folder / "cuts.json").write_text(json.dumps(cuts))
            ledger.write(folder)


@dataclass
class WriteShards:
    """Every ``tasks``-th shard of the plan → ``NNNNNN.tar`` and its offsets in the corpus folder."""

    work: str
    out: str

    def __call__(self, data: None, rank: int, world_size: int) -> None:
        plan = np.load(selection_folder(self.work) / "plan.npy")
        cuts = json.loads((selection_folder(self.work) / "cuts.json").read_text())
        corpora: dict[int, Corpus] = {}
        for shard in range(rank, len(cuts) - 1, world_size):
            write_shard(self.work, self.out, shard, self._documents(plan[cuts[shard] : cuts[shard + 1]], corpora))

    def _documents(self, rows: np.ndarray, corpora: dict[int, Corpus]) -> Iterator[Document]:
        for row in rows:
            task = int(row["task"])
            if task not in corpora:
                corpora[task] = Corpus(task_folder(self.work, task))
            yield with_images(corpora[task][int(row["index"])], int(row["images"]))


@dataclass
class Finish:
    """``ledger.json`` and ``index.json`` of the whole corpus; then the large parts of the work folder go."""

    work: str
    out: str

    def __call__(self, data: None, rank: int, world_size: int) -> None:
        work = Path(self.work)
        if not (Path(self.out) / INDEX_NAME).exists():  # else only the cleaning was cut short
            _merge_lines(sorted((work / "documents").glob(f"*/{MISSING_IMAGES}")), Path(self.out) / MISSING_IMAGES)
        ledger = read_ledger(selection_folder(self.work))
        ledger.check()
        ledger.write(self.out)
        index_shards(self.work, self.out)
        for name in ("documents", "minhash"):
            shutil.rmtree(work / name, ignore_errors=True)


def write_shard(work: str, out: str, shard: int, documents: Iterable[Document]) -> None:
    """Write shard number ``shard`` of the corpus ``out``; what ``index.json`` says of it waits in the work folder.

    Ids of entities wait there too, in ``entities/NNNNNN``.
    """
    from ..shards import ShardWriter

    name = f"{shard:06d}.tar"
    folder = Path(work) / "shards" / f"{shard:06d}"
    shutil.rmtree(folder, ignore_errors=True)
    with ShardWriter(folder, max_documents=_LARGE, max_bytes=_LARGE) as writer:
        for document in documents:
            writer.write(document)
    if (folder / entity_names.FILE).exists():
        kinds = Path(work) / "entities" / f"{shard:06d}" / entity_names.FILE
        write_atomically(kinds, (folder / entity_names.FILE).read_bytes())
    (folder / "000000.tar.idx").replace(Path(out) / f"{name}.idx")
    (folder / "000000.tar").replace(Path(out) / name)
    shutil.rmtree(folder)
    write_atomically(folder.with_suffix(".json"), json.dumps(asdict(writer.shards[0]) | {"name": name}))


def index_shards(work: str, out: str) -> None:
    """Write ``index.json`` of all shards that :func:`write_shard` wrote, and before it the ``entities.json`` of all."""
    if kinds := entity_names.read_kinds(sorted((Path(work) / "entities").glob("*"))):
        write_atomically(Path(out) / entity_names.FILE, json.dumps(kinds, ensure_ascii=False))
    infos = [json.loads(path.read_text()) for path in sorted((Path(work) / "shards").glob("*.json"))]
    write_index(Path(out), [ShardInfo(**info) for info in infos])


def cut(sizes: Iterable[int], per_shard: int, bytes_per_shard: int) -> list[int]:
    """Where shards begin and the last ends, of documents with these sizes in bytes; ``[0]`` if there are none."""
    cuts, size, number = [0], 0, -1
    for number, length in enumerate(sizes):
        if number > cuts[-1] and (number - cuts[-1] >= per_shard or size + length > bytes_per_shard):
            cuts.append(number)
            size = 0
        size += length
    return [*cuts, number + 1] if number >= 0 else [0]


def size_in_tar(files: Iterable[bytes]) -> int:
    """Bytes that a document's files take in a tar."""
    return sum(512 + -(-len(content) // 512) * 512 for content in files)


def with_images(document: Document, mask: int) -> Document:
    """The document with those of its images whose bit is set; texts that become neighbours are joined by a newline."""
    segments: list[Segment] = []
    number = 0
    for segment in document.segments:
        if isinstance(segment, Image):
            if mask >> number & 1:
                segments.append(segment)
            number += 1
        elif segments and isinstance(segments[-1], Text) and isinstance(segment, Text):
            segments[-1] = Text(f"{segments[-1].text}\n{segment.text}")
        else:
            segments.append(segment)
    images = [image for number, image in enumerate(document.meta["images"]) if mask >> number & 1]
    return Document(document.key, segments, {**document.meta, "images": images})


class _Manifest:
    """The numbers of a task's documents that the selection needs."""

    def __init__(self, task: int) -> None:
        self.task = task
        self.documents: list[tuple[Any, ...]] = []
        self.pictures: list[tuple[Any, ...]] = []

    def add(self, document: Document, draft: Draft) -> None:
        files = to_files(document)
        digest = hashlib.sha256(b"".join(hashlib.sha256(files[name]).digest() for name in sorted(files))).hexdigest()
        size = size_in_tar(files.values())
        row, pictures = len(self.documents), draft.pictures
        numbers = (len(pictures), len(draft.paragraphs), len(document.text), size)
        self.documents.append((document.key.encode(), digest[:32].encode(), *numbers, self.task, row))
        for position, picture in enumerate(pictures):
            pixels = picture.width * picture.height
            self.pictures.append((row, position, picture.sha256.encode(), picture.phash, pixels))

    def write(self, folder: Path) -> None:
        documents = np.array(self.documents, dtype=DOCUMENT_DTYPE)
        np.savez(folder / MANIFEST, documents=documents, pictures=np.array(self.pictures, dtype=PICTURE_DTYPE))


def _drafts(warcs: list[str], ledger: Ledger) -> Iterator[Draft]:
    """Every page of some WARC files that extraction can read; what it cannot is counted."""
    skipped: Counter[str] = Counter()
    for path in warcs:
        for url, page in pages(path, skipped):
            ledger.enter(RECORDS)
            ledger.keep(RECORDS)
            ledger.enter(PAGES)
            if isinstance(page, BadSample):
                example = partial(page_example, clean(url), "", "", clean(page.detail))
                ledger.drop(PAGES, "extraction", page.reason, url, example)
            else:
                yield Draft.of(page)
    for reason, count in skipped.items():
        ledger.enter(RECORDS, count)
        ledger.drop_many(RECORDS, "reading", reason, count)


def _merge_lines(parts: list[Path], whole: Path) -> None:
    """The lines of sorted files, sorted and each once; by stream, since a crawl names more images than memory holds."""
    while len(parts) > _OPEN_FILES:
        joined = whole.with_name(f"{whole.name}.{len(parts)}.partial")
        _merge_lines(parts[:_OPEN_FILES], joined)
        parts = [*parts[_OPEN_FILES:], joined]
    partial = whole.with_name(whole.name + ".partial")
    with contextlib.ExitStack() as stack, partial.open("w", encoding="utf-8") as merged:
        files = [stack.enter_context(part.open(encoding="utf-8")) for part in parts]
        merged.writelines(line for line, _ in groupby(heapq.merge(*files)))
    partial.replace(whole)
    for part in parts:
        if part.suffix == ".partial":
            part.unlink()


def read_manifests(work: str, tasks: int) -> tuple[np.ndarray, np.ndarray]:
    """Documents (n,) and pictures (m,) of all tasks; ``document`` of a picture is the row of its own."""
    documents, pictures, before = [], [], 0
    for task in range(tasks):
        with np.load(task_folder(work, task) / MANIFEST) as manifest:
            documents.append(manifest["documents"])
            pictures.append(manifest["pictures"])
        pictures[-1]["document"] += before
        before += len(documents[-1])
    return np.concatenate(documents), np.concatenate(pictures)


def _plan(
    documents: np.ndarray, pictures: np.ndarray, chosen: Selection, per_shard: int, bytes_per_shard: int
) -> tuple[np.ndarray, list[int]]:
    """The kept documents in the order of their keys, which are hashes, and where shards begin and the last ends."""
    masks = np.zeros(len(documents), dtype=np.uint64)
    stays = np.flatnonzero(chosen.pictures == 0)
    bits = np.left_shift(np.uint64(1), pictures["position"][stays].astype(np.uint64))
    np.bitwise_or.at(masks, pictures["document"][stays], bits)
    rows = np.flatnonzero(chosen.kept)
    rows = rows[np.argsort(documents["key"][rows], kind="stable")]
    plan = np.zeros(len(rows), dtype=_PLAN_DTYPE)
    plan["task"], plan["index"], plan["images"] = documents["task"][rows], documents["index"][rows], masks[rows]
    return plan, cut(documents["bytes"][rows].tolist(), per_shard, bytes_per_shard)
