"""Files as people have them: photos with captions beside them, tables, tars of macOS, marks and bytes of Windows."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kosmos.cli import main
from kosmos_data import Corpus, Document, Image, Text, write_shards
from kosmos_data.adapters import convert
from kosmos_data.check import index_folder

Png = Callable[..., bytes]


def imported(name: str, source: Path, **options: Any) -> tuple[dict[str, list[Any]], dict[str, int], Any]:
    """Segments by key, counts by reason, and the tally."""
    out = source.parent / f"out-{name}"
    _, tally = convert(name, source, out, **options)
    return {document.key: list(document.segments) for document in Corpus(out)}, dict(tally), tally


def make_tar(path: Path, *members: tuple[str, bytes] | tuple[str, bytes, bytes, str]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data, *link in members:
            info = tarfile.TarInfo(name)
            info.size = 0 if link else len(data)
            if link:
                info.type, info.linkname = link
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def photos(tmp_path: Path, make_png: Png) -> Path:
    """A folder as a person has it."""
    folder = tmp_path / "photos"
    for number, name in enumerate(
        ("photo.final.v2.JPG", "strand/ä b.png", "c.jpeg", "none.png", "empty.png", "half.jpg")
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make_png(number) if name != "half.jpg" else b"\xff\xd8\xff\xe0 half")
        path.with_suffix(".txt").write_text({"empty.png": " \n"}.get(name, f"Number {number}"), encoding="utf-8-sig")
    (folder / "none.txt").unlink()
    (folder / "._c.jpeg").write_bytes(b"\0\5\x16\7")
    return folder


def test_a_folder_of_photos(photos: Path, make_png: Png, capsys: pytest.CaptureFixture[str]) -> None:
    found, counts, tally = imported("folder", photos)
    assert found == {
        "photo_final_v2": [Image(make_png(0)), Text("Number 0")],
        "strand/ä b": [Image(make_png(1)), Text("Number 1")],
        "c": [Image(make_png(2)), Text("Number 2")],
    }
    assert counts == {"no caption": 1, "empty": 1, "image broken": 1}
    assert str(photos / "none.png") in tally.examples["no caption"][0]
    assert main(["data", "import", "folder", str(photos), "--out", str(photos.parent / "cli")]) == 0
    printed = capsys.readouterr().out
    assert "3 documents, 3 images in 1 shard" in printed
    assert f"skipped 1 × no caption: {photos / 'none.png'}" in printed


def test_the_readme_s_ten_lines_take_any_name(photos: Path, tmp_path: Path) -> None:
    def documents() -> Any:
        for picture in sorted(photos.glob("[a-z]*.[jJ]*")):
            yield Document(picture.stem, [Image(picture.read_bytes()), Text("x")])

    write_shards(tmp_path / "corpus", documents())
    assert [document.key for document in Corpus(tmp_path / "corpus")] == ["c", "half", "photo_final_v2"]


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("metadata.csv", "file_name,text\na.png,One dog\nb.png,\ngone.png,Two\n"),
        ("metadata.tsv", "\ufefffilepath\ttitle\na.png\tOne dog\nb.png\t\ngone.png\tTwo\n"),
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "text": "One dog"}\n{"file_name": "b.png", "text": ""}\n'
            '{"file_name": "gone.png", "text": "T"}',
        ),
    ],
)
def test_tables_of_paths_and_captions(tmp_path: Path, make_png: Png, name: str, body: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for picture in ("a.png", "b.png"):
        (folder / picture).write_bytes(make_png(1))
    (folder / name).write_text(body, encoding="utf-8")
    for layout, source in (("folder", folder), ("csv", folder / name)):
        found, counts, _ = imported(layout, source)
        assert found == {"a": [Image(make_png(1)), Text("One dog")]}
        assert counts == {"empty": 1, "image missing": 1}


def test_columns_of_other_names(tmp_path: Path, make_png: Png) -> None:
    (tmp_path / "a.png").write_bytes(make_png(1))
    (tmp_path / "t.csv").write_text("image;what\na.png;A dog\n")
    with pytest.raises(ValueError, match=r"no caption: none of text, title.* it has \[.image., .what.\]|no caption"):
        convert("csv", tmp_path / "t.csv", tmp_path / "o")
    found, _, _ = imported("csv", tmp_path / "t.csv", field="what")
    assert found == {"a": [Image(make_png(1)), Text("A dog")]}
    with pytest.raises(ValueError, match="takes no field"):
        convert("karpathy", tmp_path / "t.csv", tmp_path / "o2", field="what")


def test_a_folder_for_each_class(tmp_path: Path, make_png: Png) -> None:
    for name in ("red_dog/1.png", "cat/deep/2.JPG", "loose.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(make_png(1))
    found, counts, _ = imported("imagefolder", tmp_path / "in")
    assert {key: segments[1].text for key, segments in found.items()} == {"red_dog/1": "red dog", "cat/deep/2": "cat"}
    assert counts == {"no caption": 1}


def test_nothing_found_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("folder", "imagefolder"):
        with pytest.raises(ValueError, match="no usable record"):
            convert(name, tmp_path / "in", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_tars_of_macos_links_and_people(tmp_path: Path, make_png: Png) -> None:
    """One odd thing a tar; the picture and the caption are there all the same."""
    jpg, txt, png = "000.jpg", "000.txt", make_png(1)
    link, soft = tarfile.LNKTYPE, tarfile.SYMTYPE
    tars = {
        "dot": [(f"./{jpg}", png), (f"./{txt}", b"a dog")],
        "dotted folder": [(f"cc.v1/{jpg}", png), (f"cc.v1/{txt}", b"a dog")],
        "hidden": [(f"._{jpg}", b"\0\5"), (jpg, png), (f"._{txt}", b"\0\5"), (txt, b"a dog")],
        "capitals": [("000.JPG", png), ("000.TXT", b"a dog")],
        "apart": [(jpg, png), ("001.jpg", make_png(2)), (txt, b"a dog"), ("001.txt", b"")],
        "dotted name": [("000.v2.jpg", png), ("000.v2.txt", b"a dog")],
        "mark": [(jpg, png), (txt, b"\xef\xbb\xbfa dog")],
        "hard link": [("x.jpg", png), (jpg, b"", link, "x.jpg"), (txt, b"a dog")],
        "soft link": [("x.jpg", png), (jpg, b"", soft, "x.jpg"), (txt, b"a dog")],
    }
    for name, members in tars.items():
        folder = tmp_path / name
        folder.mkdir()
        make_tar(folder / "a.tar", *members)
        found, _, _ = imported("img2dataset", folder / "a.tar")
        assert list(found.values()) == [[Image(png), Text("a dog")]], name


def test_links_that_lead_nowhere_cost_themselves(tmp_path: Path, make_png: Png) -> None:
    members = [
        ("000.jpg", b"", tarfile.SYMTYPE, "/etc/passwd"),
        ("000.txt", b"a"),
        ("001.jpg", b"", tarfile.LNKTYPE, "001.jpg"),
    ]
    members += [
        ("001.txt", b"b"),
        ("002.jpg", make_png(1)),
        ("002.txt", b"it\x92s"),
        ("003.jpg", make_png(1)),
        ("003.txt", b"c"),
    ]
    make_tar(tmp_path / "a.tar", *members)
    found, counts, _ = imported("img2dataset", tmp_path / "a.tar")
    assert list(found.values()) == [[Image(make_png(1)), Text("c")]]
    assert counts == {"image missing": 2, "not UTF-8": 1}
    index_folder(tmp_path)
    assert Corpus(tmp_path)[3].segments[1] == Text("c")


def test_archives_elsewhere_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(b"x"))
    with pytest.raises(FileNotFoundError, match=r"but a\.tar\.gz: unpack it to \.tar first"):
        index_folder(tmp_path)
    (tmp_path / "a.tar.gz").rename(tmp_path / "a.tar")
    with pytest.raises(ValueError, match="it is compressed; gunzip it first"):
        index_folder(tmp_path)
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.tar").rename(tmp_path / "deep/a.tar")
    with pytest.raises(FileNotFoundError, match=r"holds no \.tar files itself, but .*deep does"):
        convert("img2dataset", tmp_path, tmp_path / "o")


def test_marks_and_bytes_of_windows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "One"}\r\n{"text": "it\x92s"}\r\n' + b"[" * 10**5 + b'\n{"content": "x"}\n')
    found, counts, tally = imported("text", path)
    assert list(found.values()) == [[Text("One")]]
    assert counts == {"not UTF-8": 1, "broken json": 1, "empty": 1}
    assert "no field 'text', but content: --field NAME" in tally.examples["empty"][0]
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps({"text": "x" * 999}).encode())[:-20])
    with pytest.raises(ValueError, match=r"b\.jsonl\.gz is cut off or damaged"):
        convert("text", packed, tmp_path / "o")


def test_captions_of_nothing_and_of_another_kind(tmp_path: Path, make_png: Png) -> None:
    (tmp_path / "1.png").write_bytes(make_png(1))
    captions = ["A dog.", "", " ", None, 5]
    annotations = [{"id": f"a.{n}", "image_id": 5.0, "caption": text} for n, text in enumerate(captions)]
    body = {"images": [{"id": 5.0, "file_name": "1.png"}], "annotations": annotations}
    (tmp_path / "c.json").write_text(json.dumps(body), encoding="utf-8-sig")
    found, counts, tally = imported("coco-captions", tmp_path / "c.json")
    assert found == {"5_0-a_0": [Image(make_png(1)), Text("A dog.")]}
    assert counts == {"empty": 2, "fields missing or of another kind": 2}
    assert tally.examples["fields missing or of another kind"][0] == "annotation 3: a caption is None, not text"


def test_conversations_say_what_they_lack(tmp_path: Path, make_png: Png) -> None:
    """JSON lines are read as a list is; a picture without a mark, an empty answer, and Alpaca's fields are named."""
    (tmp_path / "1.png").write_bytes(make_png(1))
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]
    records = [
        {"image": "1.png", "conversations": said},
        {"image": "1.png", "conversations": [said[0] | {"value": "What?"}, said[1]]},
        {"image": "1.png", "conversations": [said[0], said[1] | {"value": " "}]},
        {"instruction": "Do", "output": "Done"},
    ]
    path = tmp_path / "l.json"
    path.write_text("\n".join(map(json.dumps, records)))
    found, counts, tally = imported("llava", path)
    assert len(found) == 1
    assert counts == {"no <image> mark": 1, "empty": 1, "no conversation": 1}
    assert "its fields are instruction, output" in tally.examples["no conversation"][0]
    with pytest.raises(
        ValueError, match=r'an object with a list under "annotations" is expected; it holds|not valid JSON'
    ):
        convert("coco-captions", path, tmp_path / "o")


def test_two_pictures_of_one_number_are_refused(tmp_path: Path, make_png: Png) -> None:
    for name in ("train2017/000000000009.jpg", "VG_100K/9.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(make_png(1))
    asked = {"questions": [{"image_id": 9, "question_id": 1, "question": "What?"}]}
    answered = {"annotations": [{"question_id": 1, "multiple_choice_answer": "dog"}]}
    (tmp_path / "train_questions.json").write_text(json.dumps(asked))
    (tmp_path / "train_annotations.json").write_text(json.dumps(answered))
    with pytest.raises(ValueError, match=r"VG_100K/9\.jpg and train2017/000000000009\.jpg are both image 9"):
        convert("vqav2", tmp_path, tmp_path / "o")


def test_no_character_ends_a_command_on_a_terminal_that_cannot_show_it(tmp_path: Path) -> None:
    write_shards(tmp_path / "c", [Document("é “日本” [x]", [Text("“quoted” 日本 [/red]")])])
    command = [sys.executable, "-m", "kosmos", "data", "inspect", str(tmp_path / "c")]
    done = subprocess.run(command, env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"?quoted? ??" in done.stdout


def test_a_folder_that_is_no_corpus_says_what_it_is(tmp_path: Path, make_png: Callable[..., bytes]) -> None:
    """What to do next depends on what lies there."""

    def refused(folder: str) -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        with pytest.raises(FileNotFoundError, match=r"holds no index\.json") as error:
            Corpus(tmp_path / folder)
        return str(error.value)

    assert "it is empty" in refused("empty")
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    (tmp_path / "photos" / "deep" / "a.JPG").write_bytes(make_png(1))
    assert f"kosmos data import folder {tmp_path / 'photos'} --out" in refused("photos")
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "0.tar").touch()
    assert f"kosmos data index {tmp_path / 'tars'}" in refused("tars")
    write_shards(tmp_path / "corpora" / "text", [Document("a", [Text("b")])])
    assert f"e.g. {tmp_path / 'corpora' / 'text'}" in refused("corpora")
