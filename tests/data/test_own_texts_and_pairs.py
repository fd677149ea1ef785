"""What people have most: a folder of text files, and tables of pictures and captions with the bytes in them."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kosmos_data import Corpus, Image, Text
from kosmos_data.adapters import convert

Png = Callable[..., bytes]


def imported(name: str, source: Path, **options: Any) -> tuple[dict[str, list[Any]], dict[str, int]]:
    """Segments by key, and counts by reason."""
    out = source.parent / f"out-{name}"
    _, tally = convert(name, source, out, **options)
    return {document.key: list(document.segments) for document in Corpus(out)}, dict(tally)


@pytest.fixture
def books(tmp_path: Path) -> Path:
    folder = tmp_path / "my books"
    (folder / "old ones").mkdir(parents=True)
    (folder / "book 1.v2.txt").write_bytes(b"\xef\xbb\xbfOne.\r\n\r\nTwo </s> <image>.")
    (folder / "old ones" / "B.TXT").write_text("Drei 🙂 שלום\n", encoding="utf-8")
    (folder / "empty.txt").write_text(" \n")
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "._book 1.v2.txt").write_bytes(b"\0\5\x16\7")
    (folder / ".git").mkdir()
    (folder / ".git" / "description.txt").write_text("not mine")
    return folder


def test_a_folder_of_text_files_is_one_document_each(books: Path) -> None:
    documents, counts = imported("text", books)
    assert documents == {
        "book 1_v2": [Text("One.\r\n\r\nTwo </s> <image>.")],
        "old ones/B": [Text("Drei 🙂 שלום\n")],
    }
    assert counts == {"empty": 1, "not UTF-8": 1}


def test_one_text_file_and_text_files_beside_lines(books: Path) -> None:
    documents, counts = imported("text", books / "old ones" / "B.TXT")
    assert (documents, counts) == ({"B": [Text("Drei 🙂 שלום\n")]}, {})
    (books / "more.jsonl").write_text('{"text": "A line."}\n')
    documents, counts = imported("text", books)
    assert documents["more-00000000"] == [Text("A line.")]
    assert len(documents) == 3
    assert sum(counts.values()) == 2


def test_a_text_file_that_is_no_book_is_counted(books: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kosmos_data.adapters._files.LARGEST_TEXT", 20)
    documents, counts = imported("text", books)
    assert len(documents) == 1
    assert counts == {"text too large": 1, "empty": 1, "not UTF-8": 1}


def test_a_folder_without_text_names_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.docx").write_bytes(b"PK")
    with pytest.raises(FileNotFoundError, match=r"holds no \*\.txt or \*\.jsonl.*it holds files ending in '\.docx'"):
        imported("text", tmp_path / "photos")


LAYOUTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"image": "BYTES", "text": " a dog\n"}, {}),
    ({"image": "BYTES", "caption": "a dog", "id": 7}, {}),
    ({"jpg": "BYTES", "txt": "a dog", "json": "{}"}, {}),
    ({"image": "BYTES", "alt": "a dog", "text": "not this"}, {"field": "alt"}),
]


@pytest.mark.parametrize(("record", "options"), LAYOUTS, ids=["text", "caption", "webdataset", "field"])
def test_pictures_and_captions_in_parquet(
    record: dict[str, Any], options: dict[str, Any], tmp_path: Path, make_png: Png
) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for wrap in (lambda data: {"bytes": data, "path": "1.png"}, lambda data: data):  # datasets' column; plain bytes
        rows = [{k: wrap(make_png(n)) if v == "BYTES" else v for k, v in record.items()} for n in range(2)]
        parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "pairs.parquet")
        documents, counts = imported("parquet", tmp_path / "pairs.parquet", **options)
        expected = {f"pairs-{n:08d}": [Image(make_png(n)), Text("a dog")] for n in range(2)}
        assert (documents, counts) == (expected, {})
        for path in sorted((tmp_path / "out-parquet").iterdir()):
            path.unlink()


def test_pairs_beside_dialogues_and_records_of_neither(tmp_path: Path, make_png: Png) -> None:
    (tmp_path / "1.png").write_bytes(make_png(1))
    lines = [
        {"image": "1.png", "text": "a pair"},
        {"image": "1.png", "question": "What?", "answer": "A dog.", "text": "not a caption"},
        {"image": "1.png", "conversations": [{"from": "human", "value": "<image>Hm?"}, {"from": "gpt", "value": "A."}]},
        {"image": "2.png", "text": "a lost picture"},
        {"image": "1.png", "text": " "},
        {"image": None, "text": "no picture"},
        {"title": "neither"},
    ]
    (tmp_path / "mixed.jsonl").write_text("\n".join(map(json.dumps, lines)))
    documents, counts = imported("parquet", tmp_path / "mixed.jsonl", images=tmp_path)
    assert documents["mixed-00000000"] == [Image(make_png(1)), Text("a pair")]
    assert [len(documents[f"mixed-{n:08d}"]) for n in (1, 2)] == [3, 3]
    assert counts == {"image missing": 2, "empty": 1, "no conversation": 1}
    assert len(documents) + sum(counts.values()) == len(lines)


def test_a_caption_that_only_the_json_of_a_tar_has(tmp_path: Path, make_png: Png) -> None:
    folder = tmp_path / "tars"
    folder.mkdir()
    members = {
        "a.jpg": make_png(1), "a.json": b'{"caption": " a dog\\n", "url": "x"}',
        "b.jpg": make_png(2), "b.json": b'{"caption": "not this"}', "b.txt": b"a cat",
        "c.jpg": make_png(3), "c.json": b'{"caption": null}',
        "d.jpg": make_png(4), "d.json": b'{"title": "x"}',
        "e.json": b'{"caption": "no picture"}',
        "f.jpg": make_png(5)[:20], "f.txt": b"half a picture",
        "g.jpg": b"<html>404", "g.txt": b"no picture at all",
        "h.jpg": make_png(6), "h.json": b'{"caption": "\\ud800"}',
    }  # fmt: skip
    with tarfile.open(folder / "0.tar", "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    documents, counts = imported("img2dataset", folder)
    assert documents == {"0/a": [Image(make_png(1)), Text("a dog")], "0/b": [Image(make_png(2)), Text("a cat")]}
    assert counts == {"broken json": 2, "image missing": 1, "image broken": 2, "not UTF-8": 1}


@pytest.mark.parametrize("name", ["coco-captions", "karpathy", "vqav2", "grit", "mmc4", "llava", "csv"])
def test_a_file_that_is_no_picture_is_counted_by_every_format(name: str, tmp_path: Path) -> None:
    """As ``kosmos data import folder`` does: a run that meets it later would only stop at ``data.max_bad_rate``."""
    asked = {"questions": [{"question_id": 1, "image_id": 1, "question": "What?"}]}
    (tmp_path / "annotations.json").write_text('{"annotations": [{"question_id": 1, "multiple_choice_answer": "a"}]}')
    (tmp_path / "1.jpg").write_text("<html>404")
    talk = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A."}]
    contents: dict[str, Any] = {
        "coco-captions": {
            "images": [{"id": 1, "file_name": "1.jpg"}],
            "annotations": [{"id": 1, "image_id": 1, "caption": "a"}],
        },
        "karpathy": {"images": [{"filename": "1.jpg", "split": "train", "sentences": [{"raw": "a"}]}]},
        "vqav2": asked,
        "grit": {"image": "1.jpg", "caption": "a red dog", "ref_exps": []},
        "mmc4": {"text_list": ["A."], "image_info": [{"image_name": "1.jpg", "matched_text_index": 0}]},
        "llava": [{"image": "1.jpg", "conversations": talk}],
    }
    source = tmp_path / ("x.csv" if name == "csv" else "questions.json" if name == "vqav2" else f"{name}.jsonl")
    source = source.with_suffix(".json") if name in ("coco-captions", "karpathy", "llava") else source
    source.write_text("filepath,title\n1.jpg,a\n" if name == "csv" else json.dumps(contents[name]))
    if name == "mmc4":  # a page of text stays without its picture
        documents, counts = imported(name, source)
        assert counts == {"image broken": 1}
        assert not any(isinstance(one, Image) for segments in documents.values() for one in segments)
        return
    with pytest.raises(ValueError, match=r"1 × image broken \(first: .*begins with b'<html>404'"):
        imported(name, source)


def test_what_is_no_file_ends_no_import(tmp_path: Path, make_png: Png) -> None:
    """Folders and pipes of the names of texts and pictures; a pipe would never end."""
    photos = tmp_path / "photos"
    for name in ("a.txt", "b.png", "c.jsonl"):
        (photos / name).mkdir(parents=True)
    for name in ("p.txt", "q.png"):
        os.mkfifo(photos / name)
    for name in ("a.png", "p.png", "good.png"):
        (photos / name).write_bytes(make_png(1))
    (photos / "good.txt").write_text("a dog")
    (photos / "loop").symlink_to(photos)
    for name in ("dead.png", "dead.txt"):
        (photos / name).symlink_to("gone")
    (photos / "lost.png").symlink_to("gone")
    (photos / "lost.txt").write_text("a lost dog")
    documents, counts = imported("folder", photos)
    assert (list(documents), counts) == (["good"], {"no caption": 3, "image missing": 1})
    documents, counts = imported("text", photos)
    assert (list(documents), counts) == (["good", "lost"], {})


def test_a_zip_of_several_files_loses_none_in_silence(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.jsonl.zip", "w") as archive:
        for name in "ab":
            archive.writestr(f"{name}.jsonl", '{"text": "a"}\n')
    with pytest.raises(ValueError, match=r"holds 2 files, a\.jsonl, b\.jsonl …; unzip it first"):
        imported("text", tmp_path / "x.jsonl.zip")


def test_a_table_is_no_folder_and_a_record_an_object(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="is no table of paths and captions; a folder is read by: kosmos data import fo"
    ):
        imported("csv", tmp_path)
    talk = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    (tmp_path / "x.json").write_text(json.dumps([None, 3, "x", [], talk]))
    documents, counts = imported("llava", tmp_path / "x.json")
    assert len(documents) == 1
    assert counts == {"broken json": 4}
