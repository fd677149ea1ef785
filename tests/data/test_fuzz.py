"""A thousand broken inputs: tars, JSON and images with bytes changed, cut and repeated; all counted, none fatal."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from kosmos.processing_kosmos import KosmosProcessor
from kosmos_data import BadSample, Corpus, DataConfig, SourceConfig, build_loader, objectives
from kosmos_data.check import check_corpus
from kosmos_data.document import from_files, to_files
from kosmos_data.images import decode
from kosmos_data.reader import parse_sample

REASONS = {
    "broken tar",
    "broken json",
    "image missing",
    "image broken",
    "image too large",
    "empty",
    "no supervised token",
    "neither json nor txt",
    "not UTF-8",
}


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to eight edits: flip, overwrite with an extreme, cut, repeat, or insert."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(changed) + 1) if changed else 0
        end = min(len(changed), at + rng.choice((1, 2, 4, 64)))
        match rng.randrange(5):
            case 0 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at:end] = bytes([rng.choice((0, 255, 127, 128))]) * (end - at)
            case 2:
                del changed[at : rng.choice((end, len(changed)))]
            case 3:
                changed[at:at] = changed[at:end] * rng.randint(1, 3)
            case _:
                changed[at:at] = rng.randbytes(rng.randint(1, 9))
    return bytes(changed)


def outcome(function: Callable, *arguments: object) -> str:
    """``good``, or the reason of the BadSample; anything else is the bug that this file looks for."""
    try:
        function(*arguments)
    except BadSample as error:
        if error.reason in REASONS:
            return error.reason
        raise
    return "good"


def test_mutated_tars(corpora: Path) -> None:
    corpus, rng = Corpus(corpora / "pages"), random.Random(0)
    regions = [corpus._read(*corpus.locate(index)) for index in range(20)]
    found = Counter(
        outcome(lambda region: from_files(*parse_sample(region)), mutate(rng.choice(regions), rng)) for _ in range(400)
    )
    assert found["broken tar"] > 100
    assert found.total() == 400


def test_mutated_json(corpora: Path, processor: KosmosProcessor) -> None:
    corpus, rng = Corpus(corpora / "pages"), random.Random(1)
    samples = [to_files(corpus[index]) for index in range(20)]
    objective = objectives.get("causal", processor)

    def read(files: dict[str, bytes]) -> None:
        objective(from_files("k", files), 0)

    found: Counter[str] = Counter()
    for _ in range(300):
        files = rng.choice(samples)
        found[outcome(read, files | {"json": mutate(files["json"], rng)})] += 1
    assert found["broken json"] > 100


def test_mutated_images(make_png: Callable[..., bytes], processor: KosmosProcessor) -> None:
    import io

    from PIL import Image as Pictures

    rng, pictures = random.Random(2), [make_png(0, (40, 30))]
    for form in ("JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        buffer = io.BytesIO()
        Pictures.open(io.BytesIO(pictures[0])).save(buffer, form)
        pictures.append(buffer.getvalue())
    found = Counter(outcome(decode, mutate(rng.choice(pictures), rng), processor.image_processor) for _ in range(300))
    assert found["image broken"] > 100


def test_a_loader_over_mutated_shards_goes_on_and_counts(
    tmp_path: Path, corpora: Path, processor: KosmosProcessor
) -> None:
    """Sizes stay the same, as bit rot leaves them; the check counts the same samples as the loader."""
    import shutil

    shutil.copytree(corpora / "pages", tmp_path / "c")
    rng = random.Random(3)
    for path in sorted((tmp_path / "c").glob("*.tar")):
        data = bytearray(path.read_bytes())
        for _ in range(4):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
    source = SourceConfig("c", str(tmp_path / "c"))
    config = DataConfig([source], 64, 1, 1, max_bad_rate=0.9)
    bad: Counter[str] = Counter()
    loader = build_loader(config, processor)
    for batch in islice(loader, 60):
        bad.update(batch.stats["skipped"])
    loader.close()
    checked: Counter[str] = Counter()
    for report in check_corpus(tmp_path / "c"):
        checked.update(report.bad)
    assert checked
    assert set(bad) == set(checked)
