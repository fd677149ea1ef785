"""Class 2 of hostile inputs: tars with climbing names, links, devices and bombs; lying indexes; shards that change."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import tarfile
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from kosmos_data import BadSample, Corpus, DataConfig, Document, Image, SourceConfig, Text, build_loader, write_shards
from kosmos_data.adapters import convert
from kosmos_data.check import check_corpus, index_folder
from kosmos_data.inspection import kinds

SEEDS = int(os.environ.get("KOSMOS_SEEDS", "96")) // 8
NAMES = [
    "../out.txt",
    "/etc/passwd",
    "a/../../b.txt",
    "..",
    "",
    ".",
    "x" * 300,
    "\\..\\c.txt",
    "nul\x01.txt",
    "\ud800.txt",
    "000.jpg",
    "000.txt",
    "000.json",
    "._000.jpg",
    "a/000.jpg",
    "con",
    "-rf",
    "$(touch x).txt",
    "ü.txt",
    "\u202etxt.jpg",
]
KINDS = [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE]
KINDS += [tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, tarfile.XHDTYPE, tarfile.XGLTYPE, b"Z", b"L", b"K"]
JSONS = [b"{}", b"[]", b"null", b"[" * 10**5, b'{"segments": 5}', b'{"segments": [{"image": "../../secret.png"}]}']
JSONS += [
    b'{"segments": [{"text": 1e999}]}',
    b'{"segments": [{"image": "/dev/zero"}, {"text": "\\ud800"}]}',
    b"\xff\xfe{",
]
ABSURD = [None, -1, 0, 10**9, 10**30, 1.5, "x", "../../secret.png", "/dev/zero", [], {}, "s3://bucket/x", "\0"]


def hostile_tar(path: Path, rng: random.Random, png: bytes) -> None:
    """A dozen members, about half of them of a kind that no shard has."""
    with tarfile.open(
        path, "w", format=rng.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
    ) as tar:
        for number in range(rng.choice([1, 12, 12, 12, 300])):
            ending = rng.choice([".jpg", ".txt", ".json", ".png"])
            info = tarfile.TarInfo(f"{number // 2:03d}{ending}")
            body = {".txt": b"a cat", ".json": rng.choice(JSONS)}.get(ending, png)
            if rng.random() < 0.3:
                info.name = rng.choice(NAMES)
            if rng.random() < 0.3:
                info.type = rng.choice(KINDS)
                info.linkname = rng.choice(["../secret.png", "/etc/passwd", "000.jpg", info.name, "x" * 200, ""])
                info.devmajor, info.devminor = 1, 5
            if rng.random() < 0.1:
                info.pax_headers = {
                    rng.choice(["size", "path", "GNU.sparse.major", "hdrcharset"]): rng.choice(["-1", "9" * 30])
                }
                info.pax_headers["comment"] = "y" * rng.choice([10, 10**6])
            info.size = len(body) if info.isreg() else 0
            with suppress(UnicodeError, ValueError, OverflowError):  # what tarfile itself does not write
                tar.addfile(info, io.BytesIO(body))
    if rng.random() < 0.3:
        damage(path, rng)


def damage(path: Path, rng: random.Random) -> None:
    """Bits flipped, a part cut out, a size field overwritten, zeros behind it."""
    data = bytearray(path.read_bytes())
    match rng.randrange(5):
        case 0:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 1:
            del data[rng.randrange(len(data)) :]
        case 2:
            block = 512 * rng.randrange(len(data) // 512)
            data[block + 124 : block + 136] = rng.choice(
                [b"7" * 12, b"-0000000001\0", b"\x80" + b"\xff" * 11, b"\xff" * 12]
            )
        case 3:
            data += bytes(10**6)
        case _:
            data = data[512:] if len(data) > 512 else data
    path.write_bytes(data)


def read_all(folder: Path) -> None:
    """What a person does with a folder of shards: look, check, read each document."""
    corpus = Corpus(folder)
    for index in range(min(len(corpus), 400)):
        with suppress(BadSample):
            corpus[index]
    list(check_corpus(folder))
    with suppress(BadSample):
        list(kinds(corpus))


def test_tars(tmp_path: Path, use: Callable[..., str], secret: Path, make_picture: Callable[..., bytes]) -> None:
    outcomes = set()
    for seed in range(SEEDS):
        rng, place = random.Random(f"tar {seed}"), tmp_path / str(seed) / "in"
        place.mkdir(parents=True)
        hostile_tar(place / "a.tar", rng, make_picture())
        if rng.random() < 0.3:
            (place / "a.tar.idx").write_bytes(rng.randbytes(rng.choice([0, 7, 8, 80, 8000])))
        outcomes.add(use((seed, "import"), convert, "img2dataset", place, place.parent / "out")[:20])
        outcomes.add(use((seed, "index"), index_folder, place)[:20])
        use((seed, "read"), read_all, place)
        shutil.rmtree(place.parent)
    assert "used" in outcomes
    assert len(outcomes) > 1


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, make_picture: Callable[..., bytes]) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    picture = make_picture()
    made = (Document(f"{number:03d}", [Image(picture), Text("a cat on a mat " * 3)]) for number in range(40))
    write_shards(folder / "c", made, max_documents=10)
    return folder / "c"


def lie(folder: Path, rng: random.Random) -> None:
    """Spoil what describes the shards, or one of them behind its back."""
    tars, index = sorted(folder.glob("*.tar")), folder / "index.json"
    match rng.randrange(6):
        case 0:
            body = json.loads(index.read_text())
            places: list[Any] = [body, *body["shards"]]
            part = rng.choice(places)
            part[rng.choice(list(part))] = rng.choice(ABSURD)
            index.write_text(json.dumps(body))
        case 1:
            index.write_bytes(rng.choice([b"", b"[" * 10**5, b"\xff", b"{}", b"null", b'{"shards": [null]}']))
        case 2:
            offsets = rng.choice(tars).with_suffix(".tar.idx")
            data = bytearray(offsets.read_bytes())
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            offsets.write_bytes(rng.choice([data, data[:5], b"", data * 3]))
        case 3:
            rng.choice(tars).unlink()
        case 4:
            path = rng.choice(tars)
            path.unlink()
            path.symlink_to(rng.choice(["/dev/zero", "nowhere", "..", path.name, "/proc/self/environ"]))
        case _:
            damage(rng.choice(tars), rng)


def test_what_describes_shards_may_lie(
    tmp_path: Path, use: Callable[..., str], secret: Path, shards: Path, processor: Any
) -> None:
    """Also in mid-run, and between a start and its resumption: the loader goes on, counts, or ends with one line."""

    def take(loader: Any) -> None:
        with closing(loader):
            for _ in range(12):
                next(loader)

    outcomes = set()
    for seed in range(SEEDS):
        rng, copy = random.Random(f"lie {seed}"), tmp_path / str(seed)
        shutil.copytree(shards, copy)
        if rng.random() < 0.5:
            lie(copy, rng)
            outcomes.add(use((seed, "read"), read_all, copy)[:20])
        else:
            config = DataConfig([SourceConfig("c", str(copy))], 64, 2, 2, max_bad_rate=0.5)
            loader = build_loader(config, processor)
            state = next(loader).state
            lie(copy, rng)
            outcomes.add(use((seed, "go on"), take, loader)[:20])
            outcomes.add(
                use(
                    (seed, "resume"),
                    lambda config=config, state=state: take(build_loader(config, processor, state=state)),
                )[:20]
            )
        shutil.rmtree(copy)
    assert len(outcomes) > 2
