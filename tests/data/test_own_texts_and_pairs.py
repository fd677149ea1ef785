"""What people have most: a folder of text files, and tables of pictures and captions with the bytes in them."""

from __future__ import annotations

import json
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
    monkeypatch.setattr("kosmos_data.adapters.text._LARGEST_FILE", 20)
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
