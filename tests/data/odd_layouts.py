"""A source of each layout that ``kosmos data import`` reads, with the oddities of ``odd_records``."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .odd_records import ODD_BYTES, Odd
from .odd_tars import pairs_tar


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
