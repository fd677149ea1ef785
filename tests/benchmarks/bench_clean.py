"""What ``kosmos data clean`` finds of known faults in real corpora, and what it takes.

    kosmos data make text --out text
    kosmos data make pictures --out pictures image_side=64 'collections=[emoji]'
    python tests/benchmarks/bench_clean.py text text/text --held-out text/held_out --every 3
    python tests/benchmarks/bench_clean.py pairs pictures/pairs
    python tests/benchmarks/bench_clean.py languages             # captions of the stamps, which recipe pictures fetches
    python tests/benchmarks/bench_clean.py memory text/classification/supersense/train.jsonl     # 105,361 glosses

``text`` adds 100 copies, 100 with one word in a hundred changed, and 100 held-out documents with two in a hundred
changed; ``pairs`` 100 copies, 100 of which the picture is a smaller JPEG, and 100 with ``<PERSON>``. One process.
"""

from __future__ import annotations

import argparse
import io
import random
import resource
import tempfile
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from kosmos.pictures import on_white
from kosmos_data import Corpus, Document, Image, Text, write_shards
from kosmos_data.clean.filters import Filters
from kosmos_data.clean.options import CleanOptions
from kosmos_data.clean.pipeline import clean
from kosmos_data.images import open_image
from kosmos_data.recipes.picture_sources import Collections
from kosmos_data.web.ledger_report import table
from kosmos_data.web.options import Execution
from kosmos_data.web.rules import HeldOut

ADDED = 100
LANGUAGES = ("de", "fr", "es", "it", "pt", "ru", "el", "ja")


def soiled_text(corpus: Corpus, held_out: Corpus, every: int) -> list[Document]:
    """Every so-many-th document, with copies, near copies and held-out documents among them."""
    rng = random.Random(0)
    documents = [corpus[number] for number in range(0, len(corpus), every)]
    made = list(documents)
    long = [document for document in documents if len(document.text.split()) >= 100]
    meta = {"source": "injected"}
    made += [Document(f"exact-{n}", d.segments, meta) for n, d in enumerate(rng.sample(documents, ADDED))]
    near = enumerate(rng.sample(long, ADDED))
    made += [Document(f"near-{n}", [Text(_edited(d.text, 0.01, rng))], meta) for n, d in near]
    leaked = enumerate(rng.sample(list(held_out), ADDED))
    made += [Document(f"test-{n}", [Text(_edited(d.text, 0.02, rng))], meta) for n, d in leaked]
    rng.shuffle(made)
    return made


def soiled_pairs(corpus: Corpus) -> list[Document]:
    """All pairs, with copies, re-encoded pictures and persons among them."""
    rng = random.Random(0)
    documents = list(corpus)
    made = list(documents)
    made += [Document(f"exact-{n}", d.segments) for n, d in enumerate(rng.sample(documents, ADDED))]
    smaller = enumerate(rng.sample(documents, ADDED))
    made += [Document(f"jpeg-{n}", [Image(_jpeg(d.images[0].data)), Text(d.text)]) for n, d in smaller]
    named = enumerate(rng.sample(documents, ADDED))
    made += [Document(f"person-{n}", [d.images[0], Text("<PERSON> with " + d.text)]) for n, d in named]
    rng.shuffle(made)
    return made


def _edited(text: str, share: float, rng: random.Random) -> str:
    words = text.split(" ")
    for place in rng.sample(range(len(words)), max(1, int(len(words) * share))):
        words[place] = f"word{rng.randrange(999)}"
    return " ".join(words)


def _jpeg(data: bytes) -> bytes:
    buffer = io.BytesIO()
    on_white(open_image(data)).resize((56, 56)).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def languages() -> None:
    """Share of the stamps' captions that are left out, by language."""
    filters, count, dropped, words = Filters(CleanOptions()), Counter[str](), Counter[str](), Counter[str]()
    for picture in Collections("", False, Progress(disable=True)).read("stamps", Counter()):
        for name in ("en", *LANGUAGES):
            text = picture.caption if name == "en" else picture.translations.get(name)
            if text:
                count[name] += 1
                words[name] += len(text.split())
                dropped[name] += filters.is_foreign(text)
    for name in count:
        print(f"{name}: {dropped[name]} of {count[name]} left out, {words[name] / count[name]:.1f} words on average")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("text", "pairs", "languages", "memory"))
    parser.add_argument("source", nargs="?")
    parser.add_argument("--held-out")
    parser.add_argument("--every", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.what == "languages":
        languages()
        return
    options = CleanOptions(held_out=HeldOut([arguments.held_out] if arguments.held_out else []))
    options.execution = Execution(workers=1)
    with tempfile.TemporaryDirectory() as folder:
        source = arguments.source
        if arguments.what != "memory":
            corpus, source = Corpus(source), f"{folder}/soiled"
            text = arguments.what == "text"
            made = soiled_text(corpus, Corpus(arguments.held_out), arguments.every) if text else soiled_pairs(corpus)
            write_shards(source, made, 2000)
        before = resource.getrusage(resource.RUSAGE_SELF)
        done = clean(source, Path(folder) / "out", options)
        after = resource.getrusage(resource.RUSAGE_SELF)
    assert done is not None
    Console(width=120).print(table(done.ledger))
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(
        f"{seconds:.0f} s of CPU time; {before.ru_maxrss >> 10} MiB at most before, {after.ru_maxrss >> 10} MiB after"
    )


if __name__ == "__main__":
    main()
