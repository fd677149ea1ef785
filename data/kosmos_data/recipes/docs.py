"""Recipe ``docs``: illustrated manuals from Debian packages, through the whole path that web pages take.

    OUT/warc/gimp-help.warc.gz …    the manuals' pages and images as responses, as a crawler would have kept them
    OUT/web                         ledger.json and report.html: what each filter of ``kosmos data web`` dropped
    OUT/train  OUT/test             shards of interleaved documents

The split is by hash of the page's address, after near-duplicates were removed: no two similar pages, and no image, are
on both sides.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from rich.progress import Progress

from ..document import Document
from ..index import INDEX_NAME
from ..reader import Corpus
from ..shards import write_shards
from ..web import pipeline, warc
from ..web.ledger import Ledger
from ..web.ledger_report import write_report
from ..web.options import Execution, WebOptions
from ..web.rules import DuplicateRules, ImageRules, TextRules
from . import packages
from .splits import held_out

_TYPES: Final = {".html": "text/html; charset=utf-8", ".png": "image/png", ".jpg": "image/jpeg", ".gif": "image/gif"}
_DATE: Final = "2022-12-01T00:00:00Z"


@dataclass(frozen=True)
class Manual:
    """A manual in a Debian package.

    Args:
        package: its name.
        version: that the recipe was written for.
        sha256: of the package file of that version.
        folder: of the English pages in it.
        url: where its publisher shows the same pages; the root of all addresses.
    """

    package: str
    version: str
    sha256: str
    folder: str
    url: str


MANUALS: Final = {
    "gimp-help": Manual(
        "gimp-help-en",
        "2.10.34-2",
        "a2deec76763aaf2fcdd197bac0736cdcb0770ba993d48d233329e1c92b0bfe36",
        "usr/share/gimp/2.0/help/en",
        "https://docs.gimp.org/2.10/en/",
    ),
    "scikit-image": Manual(
        "python-skimage-doc",
        "0.19.3-8",
        "2c87d8f7d4504b29fe80283a24a153fb4175b0e4964bd90a2a0152b36bb6b468",
        "usr/share/doc/python-skimage-doc/html",
        "https://scikit-image.org/docs/0.19.x/",
    ),
    "debian-handbook": Manual(
        "debian-handbook",
        "11.20220922",
        "3d5dbeac1f1afc9c094eab9d0f701f6ecff99c4927d5a4794cf6c85678134faa",
        "usr/share/doc/debian-handbook/html/en-US",
        "https://debian-handbook.info/browse/en-US/stable/",
    ),
}


@dataclass
class Options:
    """What ``docs`` writes.

    Args:
        manuals: which of gimp-help, scikit-image, debian-handbook.
        text, images, duplicates: the filters of ``kosmos data web``, KOSMOS-1's by default.
        held_out_every: one page in this many goes to ``test``.
        documents_per_shard: documents in a tar.
        workers: processes; 0: as many as cores.
        strict: refuse other versions of the Debian packages than those that the recipe was written for.
        cache: folder for fetched packages; default $KOSMOS_CACHE, else ~/.cache/kosmos.
    """

    manuals: list[str] = field(default_factory=lambda: list(MANUALS))
    text: TextRules = field(default_factory=TextRules)
    images: ImageRules = field(default_factory=ImageRules)
    duplicates: DuplicateRules = field(default_factory=DuplicateRules)
    held_out_every: int = 20
    documents_per_shard: int = 500
    workers: int = 0
    strict: bool = False
    cache: str = ""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.manuals if name not in MANUALS]:
            raise ValueError(f"manuals: {unknown[0]!r} is none of {', '.join(MANUALS)}")


def build(out: Path, options: Options, progress: Progress) -> dict[str, Any]:
    """Write the whole corpus below ``out``; return counts for the report."""
    report: dict[str, Any] = {"sources": [], "responses": {}}
    warcs = []
    (out / "warc").mkdir()
    for name in options.manuals:
        manual = MANUALS[name]
        version, strict = manual.version, options.strict
        cache = options.cache or None
        files = packages.apt(manual.package, cache, manual.sha256, version=version, strict=strict, progress=progress)
        report["sources"].append(packages.describe(files))
        warcs.append(out / "warc" / f"{name}.warc.gz")
        report["responses"][name] = write_warc(files / manual.folder, manual.url, warcs[-1])
    ledger = _filter(warcs, out / "web", options, progress)
    report["in"], report["kept"] = dict(ledger.entered), dict(ledger.kept)
    for part in ("train", "test"):
        totals: Counter[str] = Counter()
        write_shards(
            out / part,
            _part(out / "web", part, options.held_out_every, totals),
            options.documents_per_shard,
            may_be_empty=True,
        )
        report[part] = dict(totals)
    for finished in [*(out / "web").glob("*.tar*"), out / "web" / INDEX_NAME]:
        finished.unlink()  # train and test hold the documents now
    return report


def write_warc(folder: Path, url: str, path: Path) -> dict[str, int]:
    """Write the pages and images below ``folder`` as responses from ``url``; return how many of each type there are."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; this version of the package is laid out differently")
    counts: Counter[str] = Counter()
    with warc.WarcWriter(path, _DATE) as writer:
        for file in sorted(folder.rglob("*")):
            if (content_type := _TYPES.get(file.suffix)) and file.is_file():
                address = url + quote(file.relative_to(folder).as_posix(), safe="/+,;=@!")  # as pages write them
                writer.write(address, content_type, file.read_bytes())
                counts["pages" if file.suffix == ".html" else "images"] += 1
    return dict(counts)


def _filter(warcs: list[Path], out: Path, options: Options, progress: Progress) -> Ledger:
    """Run the path of web pages to its end, and leave ``ledger.json`` and ``report.html`` of it."""
    web = WebOptions(text=options.text, images=options.images, duplicates=options.duplicates)
    web.documents_per_shard, web.execution = options.documents_per_shard, Execution(workers=options.workers)
    ledger = pipeline.run(warcs, out, web, progress)
    assert ledger is not None  # only Slurm leaves work to do
    write_report(out)
    shutil.rmtree(out / "work")
    return ledger


def _part(folder: Path, part: str, held_out_every: int, totals: Counter[str]) -> Iterator[Document]:
    """The documents of ``train`` or ``test``, counted as they pass."""
    corpus = Corpus(folder)
    for index in range(len(corpus)):
        document = corpus[index]
        if held_out(document.key, held_out_every) == (part == "test"):
            totals["documents"] += 1
            totals["images"] += len(document.images)
            totals["words"] += len(document.text.split())
            yield document
