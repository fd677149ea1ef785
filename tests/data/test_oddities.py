"""Odd archives, tables and JSON of every layout: documents + counted = records, and never a traceback.

The kinds of oddity are those that real files had. ``KOSMOS_SEEDS=2000 pytest tests/data/test_oddities.py`` draws more.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import os
import random
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kosmos_data import BadSample, Corpus
from kosmos_data.adapters import convert
from kosmos_data.check import check_corpus, index_folder

SEEDS = int(os.environ.get("KOSMOS_SEEDS", "300"))
Png = Callable[..., bytes]
ODD_VALUES = [
    None,
    5,
    -1.5,
    "x" * 300,
    "..",
    "",
    " ",
    [],
    {},
    [[]],
    True,
    "\ud800",
    float("nan"),
    10**30,
    "<image>",
    "\0",
]
ODD_BYTES = [b"\x92", b"\xff\xfe", b"\x00", b"\xed\xa0\x80"]


class Odd:
    """Draws oddities for one source and keeps how many records it has; None: damage that changes their number."""

    def __init__(self, seed: int, folder: Path, make_png: Png) -> None:
        self.rng, self.folder, self.make_png = random.Random(seed), folder, make_png
        self.records: int | None = self.rng.randint(1, 8)

    def __bool__(self) -> bool:
        return self.rng.random() < 0.3

    def value(self, good: Any) -> Any:
        """A good value, or one that a stranger's program wrote."""
        return self.rng.choice(ODD_VALUES) if self.rng.random() < 0.12 else good

    def record(self, good: dict[str, Any]) -> Any:
        """A record with fields of another kind, without some, with more, or no record at all."""
        if self.rng.random() < 0.05:
            return self.rng.choice(ODD_VALUES)
        kept = {key: self.value(value) for key, value in good.items() if self.rng.random() > 0.05}
        return kept | ({"more": self.value("x")} if self else {})

    def picture(self, number: int) -> str:
        """A picture's name below the folder: good, empty, missing, or outside."""
        name = f"{number}.PNG" if self else f"sub dir/{number}.é.png"
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        kind = self.rng.random()
        if kind > 0.1:
            path.write_bytes(b"" if kind < 0.15 else b"no picture" if kind < 0.2 else self.make_png(number))
        return name if kind < 0.95 else f"../{name}"

    def text(self) -> str:
        return self.rng.choice(["A dog.", " Zwei\nHunde ", "日本", "</s> <image>", '"quoted", comma'])

    def write(self, path: Path, body: str) -> Path:
        """Text with a byte order mark, a wrong byte, or cut off."""
        data = body.encode("utf-8", "surrogatepass")
        if self:
            data = b"\xef\xbb\xbf" + data
        if self.rng.random() < 0.1 and (at := data.find(b"dog")) > 0:
            data = data[:at] + self.rng.choice(ODD_BYTES) + data[at:]
            self.records = self.records if b"\0" not in data else None
        if self.rng.random() < 0.1:
            data, self.records = data[: self.rng.randrange(len(data))], None
        path.write_bytes(data)
        return path

    def write_json(self, name: str, body: Any) -> Path:
        return self.write(self.folder / name, json.dumps(body, ensure_ascii=bool(self)))

    def write_lines(self, name: str, records: list[Any]) -> Path:
        lines = [json.dumps(record, ensure_ascii=bool(self)) for record in records]
        if self:
            lines.insert(self.rng.randrange(len(lines) + 1), self.rng.choice(["", "not json", "[1]", "[" * 10**5]))
            self.records = None if self.records is None else self.records + bool(min(map(len, lines)))
        path = self.write(self.folder / name, ("\r\n" if self else "\n").join(lines) + "\n")
        if self:
            packed = gzip.compress(path.read_bytes())
            path.unlink()
            path = path.with_name(path.name + ".gz")
            if self:
                packed, self.records = packed[: self.rng.randrange(len(packed))], None
            path.write_bytes(packed)
        return path


def pairs_tar(odd: Odd) -> Path:
    """Tars of pairs as macOS, GNU tar and people make them."""
    rng, members = odd.rng, []
    for number in range(odd.records or 0):
        key = f"{number:03d}" + (".v2" if odd else "")
        key = rng.choice(["", "", "./", "a/b.c/", "x" * 120 + "/"]) + key
        caption = rng.choice([b"a dog", b"", b" \n", b"\xef\xbb\xbfa dog", b"it\x92s a dog", "日本".encode()])
        jpg, txt = rng.choice([("jpg", "txt"), ("JPG", "TXT"), ("png", "txt"), ("webp", "txt"), ("avif", "txt")])
        kind, target = rng.choice([(tarfile.REGTYPE, ""), (tarfile.SYMTYPE, ""), (tarfile.LNKTYPE, "")])
        if kind != tarfile.REGTYPE:
            target = rng.choice(
                [members[0][0] if members else "nowhere", "nowhere", f"{key}.{jpg}", "../../etc/passwd"]
            )
        if rng.random() > 0.1:
            members.append((f"{key}.{jpg}", odd.make_png(number), kind if odd else tarfile.REGTYPE, target))
        if rng.random() > 0.05 or len(members) == 0:
            members.append((f"{key}.{txt}", caption, tarfile.REGTYPE, ""))
        elif members[-1][0] != f"{key}.{jpg}":
            odd.records = None if odd.records is None else odd.records - 1  # neither of its files is in the tar
        if odd:
            members.append((f"{key}.json", rng.choice([b"{}", b"{", b"null", b"[]", b'{"url": 1}']), b"0", ""))
            if not any(name.rpartition(".")[0] == key for name, *_ in members[:-1]):
                odd.records = None
        if odd:
            folder, _, base = members[-1][0].rpartition("/")
            members.append((f"{folder}/._{base}".lstrip("/"), b"\0\5\x16\7", tarfile.REGTYPE, ""))
        if odd:
            members.append((f"dir{number}", b"", rng.choice([tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]), ""))
        if rng.random() < 0.05:
            members.append(members[-1])
    if odd:
        rng.shuffle(members)
    path = odd.folder / "a.b.tar"
    with tarfile.open(path, "w", format=rng.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])) as tar:
        for name, data, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            info.size = len(data) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(data))
    if rng.random() < 0.15:
        data = bytearray(path.read_bytes())
        for _ in range(3):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
        odd.records = None
    return path


def coco_captions(odd: Odd) -> Path:
    images = [{"id": number, "file_name": odd.picture(number)} for number in range(3)]
    entries = [odd.record({"id": n, "image_id": n % 3, "caption": odd.text()}) for n in range(odd.records or 0)]
    return odd.write_json("c.json", {"images": [odd.record(image) for image in images], "annotations": entries})


def karpathy(odd: Odd) -> Path:
    sentences = [odd.record({"raw": odd.text(), "tokens": []}) for _ in range(odd.records or 0)]
    return odd.write_json(
        "k.json", {"images": [{"filename": odd.picture(0), "split": "train", "sentences": sentences}]}
    )


def llava(odd: Odd) -> Path:
    records = []
    for number in range(odd.records or 0):
        said = "<image>\n" * odd.rng.choice([1, 1, 1, 0, 2]) + "What?"
        turns = [odd.record({"from": "human", "value": said}), odd.record({"from": "gpt", "value": odd.text()})]
        records.append(odd.record({"id": "a.b", "image": odd.picture(number), "conversations": turns}))
    return odd.write_json("l.json", records)


def messages(odd: Odd) -> Path:
    records = []
    for number in range(odd.records or 0):
        parts = [odd.record({"type": "text", "text": odd.text()}), {"type": "image", "image": odd.picture(number)}]
        said = [{"role": "system", "content": odd.text()}] if odd else []
        said += [odd.record({"role": "user", "content": parts if odd else odd.text()})]
        said += [odd.record({"role": "assistant", "content": odd.value(odd.text())})]
        said += [{"role": odd.rng.choice(["user", "tool", "assistant"]), "content": "x"}] if odd else []
        named = {"images": [odd.picture(number)] * odd.rng.choice([1, 2])} if odd else {}
        records.append(odd.record({"messages": said, "id": number, **named}))
    return odd.write_lines("m.jsonl", records)


def cauldron(odd: Odd) -> Path:
    records = []
    for number in range(odd.records or 0):
        texts = [odd.record({"user": odd.text(), "assistant": odd.text(), "source": "x"})]
        records.append(odd.record({"images": [odd.value(odd.picture(number))], "texts": texts}))
    return odd.write_json("c.json", records)


def alpaca(odd: Odd) -> Path:
    record = {"instruction": "Do.", "input": "", "output": "Done", "history": [["a", "b"]]}
    return odd.write_lines("a.jsonl", [odd.record(record) for _ in range(odd.records or 0)])


def flan(odd: Odd) -> Path:
    records = [{"inputs": odd.text(), "targets": odd.text()}, {"question": odd.text(), "answer": odd.text()}]
    return odd.write_lines("f.jsonl", [odd.record(odd.rng.choice(records)) for _ in range(odd.records or 0)])


def obelics(odd: Odd) -> Path:
    pages = [
        odd.record({"texts": [odd.value(odd.text()), None], "images": [None, odd.value("http://x/1")]})
        for _ in range(odd.records or 0)
    ]
    return odd.write_lines("o.jsonl", pages)


def mmc4(odd: Odd) -> Path:
    pages = []
    for number in range(odd.records or 0):
        info = odd.record({"image_name": odd.picture(number), "matched_text_index": odd.value(0)})
        pages.append(odd.record({"text_list": [odd.value(odd.text())], "image_info": [info], "url": "u"}))
    return odd.write_lines("m.jsonl", pages)


def text(odd: Odd) -> Path:
    return odd.write_lines("t.v1.jsonl", [odd.record({"text": odd.text(), "n": 1}) for _ in range(odd.records or 0)])


def table(odd: Odd) -> Path:
    path, body = odd.folder / odd.rng.choice(["t.csv", "t.tsv"]), io.StringIO()
    writer = csv.writer(body, delimiter="\t" if path.suffix == ".tsv" else odd.rng.choice(",;"))
    writer.writerow(odd.rng.choice([("filepath", "title"), ("Image", "Caption"), ("image", "title", "more")]))
    for number in range(odd.records or 0):
        writer.writerow([odd.picture(number), "" if odd else odd.text()])
    return odd.write(path, body.getvalue())


def folder(odd: Odd) -> Path:
    for number in range(odd.records or 0):
        path = odd.folder / "in" / odd.rng.choice(["", "sub.dir", "é"]) / f"photo {number}.final.JPG"
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(odd.rng.choice([odd.make_png(number), odd.make_png(number), b"", b"\xff\xd8\xffhalf"]))
        if not odd:
            path.with_suffix(odd.rng.choice([".txt", ".TXT"])).write_bytes(
                odd.rng.choice([b"a dog", b"\xef\xbb\xbfa dog", b" ", b"it\x92s", "ein Hündchen".encode()])
            )
        (path.parent / f"._photo {number}.jpg").write_bytes(b"\0\5\x16\7")
    return odd.folder / "in"


def imagefolder(odd: Odd) -> Path:
    return folder(odd)


LAYOUTS: dict[str, Callable[[Odd], Path]] = {
    "img2dataset": pairs_tar,
    "coco-captions": coco_captions,
    "karpathy": karpathy,
    "llava": llava,
    "messages": messages,
    "cauldron": cauldron,
    "alpaca": alpaca,
    "flan": flan,
    "obelics": obelics,
    "mmc4": mmc4,
    "text": text,
    "csv": table,
    "folder": folder,
    "imagefolder": imagefolder,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_documents_and_counted_are_all_records(tmp_path: Path, make_png: Png, name: str) -> None:
    used = refused = counted = 0
    for seed in range(SEEDS // len(LAYOUTS)):
        place = tmp_path / str(seed)
        place.mkdir()
        odd = Odd(seed, place, make_png)
        source = LAYOUTS[name](odd)
        begun = time.monotonic()
        try:
            _, tally = convert(name, source, place / "out", place if source.is_file() else None)
        except ValueError as error:
            assert str(source) in str(error), seed  # noqa: PT017 - a source of which nothing can be used is named
            refused += 1
        else:
            documents = sum(1 for _ in Corpus(place / "out"))
            assert odd.records is None or documents + tally.records == odd.records, (seed, tally)
            assert all(tally.examples[reason] for reason in tally)
            assert not [problem for report in check_corpus(place / "out") for problem in report.problems], seed
            used, counted = used + documents, counted + tally.records
        assert time.monotonic() - begun < 10
    assert used > 10
    assert counted + refused > 5


def test_odd_tars_read_where_they_lie(tmp_path: Path, make_png: Png) -> None:
    """Indexed, and read sample by sample: each is a document or a bad sample, whatever the tar holds."""
    documents = 0
    for seed in range(SEEDS // 4):
        place = tmp_path / str(seed)
        place.mkdir()
        path = pairs_tar(Odd(seed, place, make_png))
        try:
            index_folder(place)
            corpus = Corpus(place)
        except ValueError as error:
            assert str(place) in str(error), seed  # noqa: PT017
            assert path.exists()
            continue
        for index in range(len(corpus)):
            with contextlib.suppress(BadSample):
                documents += len(corpus[index].segments) > 0
        list(check_corpus(place))
    assert documents > SEEDS // 8
