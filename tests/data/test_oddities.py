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

from kosmos_data import BadSample, Corpus, adapters
from kosmos_data.adapters import convert
from kosmos_data.check import check_corpus, index_folder

SEEDS = int(os.environ.get("KOSMOS_SEEDS", "500"))
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


def sharegpt(odd: Odd) -> Path:
    """The layout of LLaVA as lines, with other names of the roles, or in parquet without a picture."""
    records = []
    for number in range(odd.records or 0):
        turns = [odd.record({"from": "user", "value": odd.text()}), odd.record({"from": "chatgpt", "value": "Yes."})]
        records.append(odd.record({"id": number, "conversations": turns * odd.rng.choice([1, 1, 3])}))
    return odd.write_lines("S.JSONL", records)


def parquet(odd: Odd) -> Path:
    """Pictures, as bytes or by name, with captions; columns of parquet have one kind, but anything may be null."""
    import pyarrow
    import pyarrow.parquet

    rows = [odd.rng.random() for _ in range(odd.records or 0)]
    bytes_ = [None if odd else odd.rng.choice([b"", b"no picture", odd.make_png(1), odd.make_png(2)]) for _ in rows]
    columns: dict[str, Any] = {"image": [None if odd else {"bytes": data, "path": None} for data in bytes_]}
    columns["caption"] = [odd.rng.choice([None, "", " ", "A dog.", "</s> <image>"]) if odd else "A cat." for _ in rows]
    if odd:
        columns["id"] = [odd.rng.choice([None, "a.b", "", "x" * 300]) for _ in rows]
    path = odd.folder / odd.rng.choice(["p.parquet", "P.PARQUET"])
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    if odd.rng.random() < 0.1:
        path.write_bytes(path.read_bytes()[: -odd.rng.randrange(1, 60)])
        odd.records = None
    return path


def grit(odd: Odd) -> Path:
    """Lines, or tars with the table that img2dataset leaves beside each."""
    records = []
    for number in range(odd.records or 0):
        score = odd.value(odd.rng.choice([0.9, 0.5]))
        boxes = [
            [0, 5, 0.1, odd.value(0.2), 0.5, 0.9, score],
            [odd.value(2), odd.rng.choice([5, 10**9]), 0, 0, 1, 1, 1],
        ]
        record = {"image": odd.picture(number), "caption": "a red dog", "ref_exps": odd.value(boxes), "noun_chunks": []}
        records.append(odd.record(record))
    if not odd:
        return odd.write_lines("g.jsonl", records)
    folder = odd.folder / "in"
    folder.mkdir()
    with tarfile.open(folder / "00000.TAR", "w") as tar:
        for number, record in enumerate(records):
            for kind, data in (("jpg", odd.make_png(number)), ("json", json.dumps(record).encode()), ("txt", b"a dog")):
                info = tarfile.TarInfo(f"{number:05d}.{kind}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    (folder / "00000.parquet").write_bytes(b"PAR1")
    return folder


def vqav2(odd: Odd) -> Path:
    """One question a picture, so that documents and counts are those of questions; answers may be missing."""
    (odd.folder / "in").mkdir()
    asked, answered = [], []
    for number in range(odd.records or 0):
        if odd.rng.random() > 0.1:
            data = odd.rng.choice([*[odd.make_png(number)] * 5, b"", b"no picture"])
            (odd.folder / "in" / f"COCO_{number:012d}.PNG").write_bytes(data)
        asked.append(odd.record({"question_id": number, "image_id": number, "question": odd.text()}))
        answered.append(odd.record({"question_id": number, "multiple_choice_answer": odd.text(), "answers": []}))
    if len({str(one.get("image_id")) for one in asked if isinstance(one, dict)}) < len(asked):
        odd.records = None  # two questions about one picture are one document
    names = odd.rng.choice(
        [("questions.json", "annotations.json"), ("v2_Questions_train.JSON", "Train_annotations.json")]
    )
    odd.write_json(f"in/{names[0]}", {"info": {}, "questions": asked})
    (odd.folder / "in" / names[1]).write_text(json.dumps({"info": {}, "annotations": answered}))
    return odd.folder / "in"


def reviews(odd: Odd) -> Path:
    records = []
    for number in range(odd.records or 0):
        template = ["rooms", "clean", odd.text(), 1]
        text = odd.rng.choice([{"explanation": odd.text()}, {"text": odd.text()}, {"template": odd.value(template)}])
        records.append(odd.record({"user": odd.value("ann"), "item": number, "rating": odd.value(4.5), **text}))
    if odd:
        return odd.write_lines("R.jsonl", records)
    return odd.write_json("reviews.JSON", records)


def convai2(odd: Odd) -> Path:
    lines = []
    for _ in range(odd.records or 0):
        said = ["your persona: i ski.", "partner's persona: i read.", "hi !\thello !\t\ta|b", "so ?\tyes ."]
        kept = [odd.rng.choice(["", "\t", " \t ", "\t\t", "your persona: "]) if odd and odd else line for line in said]
        lines += [f"{number} {line}" for number, line in enumerate(kept, start=1)]
    if odd:
        lines.insert(odd.rng.randrange(len(lines) + 1), "no number")
        odd.records = None if odd.records is None else odd.records + 1
    return odd.write(odd.folder / "c.TXT", "\n".join(lines) + "\n")


def personachat(odd: Odd) -> Path:
    records = []
    for _ in range(odd.records or 0):
        said = odd.record({"history": [odd.value("hi !")], "candidates": ["no", odd.value("hello !")]})
        records.append(odd.record({"personality": odd.value(["i ski."]), "utterances": [said]}))
    return odd.write_json("p.json", {"train": records, "valid": []})


def dialogues(odd: Odd) -> Path:
    records = []
    for _ in range(odd.records or 0):
        record = {"persona": {"city": odd.value("Rome")}, "turns": [odd.value("where ?"), "in Rome"], "partner": None}
        records.append(odd.record(record))
    return odd.write_lines("d.jsonl", records)


def books(odd: Odd) -> Path:
    """Text files of people, each a document, and lines beside them."""
    folder = odd.folder / "in"
    for number in range(odd.records or 0):
        path = folder / odd.rng.choice(["", "sub.dir", "é"]) / f"book {number}.v2{odd.rng.choice(['.txt', '.TXT'])}"
        path.parent.mkdir(exist_ok=True, parents=True)
        body = odd.rng.choice(["", " \n", "\u200b", odd.text(), odd.text() * 50])
        path.write_bytes(body.encode() + odd.rng.choice([b"", b"", b"", *ODD_BYTES]))
        (path.parent / f"._{path.name}").write_bytes(b"\0\5\x16\7")
    if odd and odd.records:
        (folder / "more.JSONL").write_text('{"text": "A line."}\nnot json\n')
        odd.records += 2
    return folder


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
    "sharegpt": sharegpt,
    "parquet": parquet,
    "grit": grit,
    "vqav2": vqav2,
    "reviews": reviews,
    "convai2": convai2,
    "personachat": personachat,
    "jsonl": dialogues,
    "text of books": books,
}


def test_every_format_is_here() -> None:
    assert {name.split()[0] for name in LAYOUTS} == set(adapters.FORMATS)


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
            _, tally = convert(name.split()[0], source, place / "out", place if source.is_file() else None)
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
