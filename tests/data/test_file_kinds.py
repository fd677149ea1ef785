"""What a file's name and a text's letters say is read alike by every format: endings, packings, nothing to be seen."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kosmos import find_checkpoint
from kosmos_data import Corpus
from kosmos_data.adapters import convert
from kosmos_data.document import PICTURES, is_blank
from kosmos_data.web.held_out import HeldOutIndex
from kosmos_data.web.rules import HeldOut

Png = Callable[..., bytes]
TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
LINES: dict[str, dict[str, Any]] = {
    "text": {"text": "a dog"},
    "messages": {"messages": TALK},
    "alpaca": {"instruction": "Say a.", "output": "a"},
    "flan": {"inputs": "1 + 1", "targets": "2"},
    "obelics": {"texts": ["a"], "images": [None]},
    "mmc4": {"text_list": ["a"], "image_info": []},
    "reviews": {"user": "ann", "item": "x", "text": "fine"},
    "jsonl": {"persona": {"city": "Rome"}, "turns": ["where ?", "in Rome"]},
    "grit": {"image": "1.png", "caption": "a dog"},
}
PACKED: dict[str, Callable[[bytes], bytes]] = {
    ".jsonl": bytes, ".JSONL": bytes, ".NdJson": bytes, ".jsonl.bz2": bz2.compress, ".Jsonl.XZ": lzma.compress,
    ".ndjson.GZ": gzip.compress,
}  # fmt: skip


@pytest.mark.parametrize("ending", PACKED)
@pytest.mark.parametrize("name", LINES)
def test_a_folder_of_lines_in_any_case_and_packing(name: str, ending: str, tmp_path: Path, make_png: Png) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1.png").write_bytes(make_png(1))
    lines = (json.dumps(LINES[name]) + "\n") * 2
    (tmp_path / "in" / f"Train{ending}").write_bytes(PACKED[ending](lines.encode()))
    convert(name, tmp_path / "in", tmp_path / "out")
    assert len(Corpus(tmp_path / "out")) == 2


@pytest.mark.parametrize("ending", ["csv", "CSV", "tsv.gz", "csv.bz2"])
@pytest.mark.parametrize("name", ["csv", "folder", "reviews"])
def test_tables_in_any_case_and_packing(name: str, ending: str, tmp_path: Path, make_png: Png) -> None:
    (tmp_path / "1.png").write_bytes(make_png(1))
    tab = "\t" if "tsv" in ending else ","
    rows = [["file_name", "text", "user", "item"], ["1.png", "a dog", "ann", "x"]]
    body = "".join(tab.join(row) + "\n" for row in rows).encode()
    pack = gzip.compress if ending.endswith("gz") else bz2.compress if ending.endswith("bz2") else bytes
    path = tmp_path / f"Metadata.{ending}"
    path.write_bytes(pack(body))
    convert(name, path if name == "csv" else tmp_path, tmp_path / "out")
    assert len(Corpus(tmp_path / "out")) == 1


def test_every_ending_of_a_picture(tmp_path: Path, make_png: Png) -> None:
    """Those that are not read, as phones and cameras write them, are counted and named."""
    (tmp_path / "in").mkdir()
    for number, ending in enumerate([*PICTURES, "HEIC", "cr2", "svg"]):
        (tmp_path / "in" / f"{number}.{ending}").write_bytes(make_png(1) if ending in PICTURES else b"<svg/>")
        (tmp_path / "in" / f"{number}.txt").write_text("a dog")
    _, tally = convert("folder", tmp_path / "in", tmp_path / "out")
    assert len(Corpus(tmp_path / "out")) == len(PICTURES)
    assert dict(tally) == {"image broken": 3}
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.docx").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"skipped: none; it holds files ending in '\.docx'"):
        convert("folder", tmp_path / "none", tmp_path / "out2")


@pytest.mark.parametrize("nothing", ["\u200b", "\ufeff \u00ad", "\u2060\n\u3000", "\u200e\u202e", "\x85\x01"])
def test_a_text_of_which_nothing_is_seen_is_empty(nothing: str, tmp_path: Path, make_png: Png) -> None:
    assert is_blank(nothing)
    assert not is_blank(f"{nothing}語")
    (tmp_path / "1.png").write_bytes(make_png(1))
    talk = [TALK[0], {"role": "assistant", "content": nothing}]
    turned = [{"role": "user", "content": nothing}, TALK[1]]
    records: list[tuple[str, Any]] = [("text", {"text": nothing}), ("messages", {"messages": talk})]
    records += [("messages", {"messages": turned}), ("grit", {"image": "1.png", "caption": nothing})]
    records += [("mmc4", {"text_list": [nothing]}), ("obelics", {"texts": [nothing], "images": [None]})]
    records += [("flan", {"inputs": "a", "targets": nothing}), ("reviews", {"user": "a", "item": "b", "text": nothing})]
    records += [("jsonl", {"persona": {"city": "Rome"}, "turns": ["where ?", nothing]})]
    for number, (name, record) in enumerate(records):
        source = tmp_path / f"{number}.jsonl"
        source.write_text(json.dumps(record))
        with pytest.raises(ValueError, match="skipped: 1 ×"):
            convert(name, source, tmp_path / f"out{number}")


@pytest.mark.parametrize("packing", [b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"])
@pytest.mark.parametrize("name", ["text", "llava", "csv"])
def test_a_packed_file_without_its_ending_is_named(name: str, packing: bytes, tmp_path: Path) -> None:
    path = tmp_path / ("a.jsonl" if name == "text" else "a.csv" if name == "csv" else "a.json")
    path.write_bytes(packing + bytes(40))
    with pytest.raises(ValueError, match=r"packed by .*: name it so"):
        convert(name, path, tmp_path / "out")


def test_an_address_is_no_file(tmp_path: Path) -> None:
    for address in ("https://example.com/photos", "s3://bucket/x.csv", "gs://bucket/x"):
        for given in (address, Path(address)):  # pathlib takes one of the slashes
            with pytest.raises(ValueError, match=f"{address} is an address, .*download it"):
                convert("folder", given, tmp_path / "out")
            with pytest.raises(ValueError, match=f"{address} is an address"):
                convert("folder", tmp_path, tmp_path / "out", given)
            with pytest.raises(ValueError, match=f"{address} is an address"):
                find_checkpoint(given)
    with pytest.raises(ValueError, match="by its name, microsoft/kosmos-2-patch14-224;"):
        find_checkpoint("https://huggingface.co/microsoft/kosmos-2-patch14-224/tree/main")


def test_a_quotation_mark_that_nothing_closes_is_counted(tmp_path: Path, make_png: Png) -> None:
    """All behind it would be one caption, and nobody would know of the rows in it."""
    (tmp_path / "1.png").write_bytes(make_png(1))
    path = tmp_path / "t.csv"
    for end, wanted in (('"two\nlines"', 3), ('"a red dog', 2), ("a dog, and another", 3), ("", 2)):
        path.write_text(f"filepath,title\n1.png,a dog\n1.png,a cat\n1.png,{end}\n" + "1.png,x\n" * (wanted == 2))
        _, tally = convert("csv", path, tmp_path / f"out{len(end)}")
        captions = [document.text for document in Corpus(tmp_path / f"out{len(end)}")]
        assert len(captions) + tally.records == 3 + (end == "")
        assert captions[:2] == ["a dog", "a cat"]
        assert ("nothing closes" in str(tally.lines())) == (end == '"a red dog')


def test_a_caption_that_is_null_is_empty(tmp_path: Path, make_png: Png) -> None:
    (tmp_path / "1.png").write_bytes(make_png(1))
    (tmp_path / "a.jsonl").write_text('{"image": "1.png", "text": null}\n{"image": "1.png", "text": "a dog"}\n')
    _, tally = convert("parquet", tmp_path / "a.jsonl", tmp_path / "out")
    assert dict(tally) == {"empty": 1}


def test_one_text_is_no_list_of_letters(tmp_path: Path) -> None:
    said = {"history": ["hi"], "candidates": ["hello"]}
    records = [{"personality": "i ski.", "utterances": [said]}, {"personality": ["i ski."], "utterances": [said]}]
    records += [{"personality": ["i ski."], "utterances": [{"history": [5], "candidates": ["hello"]}]}]
    (tmp_path / "p.json").write_text(json.dumps({"train": records}))
    _, tally = convert("personachat", tmp_path / "p.json", tmp_path / "out")
    assert len(Corpus(tmp_path / "out")) == 1
    assert tally.records == 2


def test_the_table_beside_grits_tars_is_not_read_for_them(tmp_path: Path, make_png: Png) -> None:
    """img2dataset leaves ``00000.parquet`` beside ``00000.tar``."""
    import io
    import tarfile

    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "00000.tar", "w") as tar:
        for name, data in (("0.jpg", make_png(1)), ("0.json", b'{"caption": "a red dog"}'), ("0.txt", b"a red dog")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    for name in ("00000.parquet", "00000_stats.json"):
        (tmp_path / "in" / name).write_bytes(b"{}")
    convert("grit", tmp_path / "in", tmp_path / "out")
    assert len(Corpus(tmp_path / "out")) == 1


def test_reviews_of_several_files_are_refused(tmp_path: Path) -> None:
    for name in ("train.json", "test.json"):
        (tmp_path / name).write_text(json.dumps([LINES["reviews"]]))
    with pytest.raises(ValueError, match=r"several files of reviews: give one of .*test\.json, .*train\.json"):
        convert("reviews", tmp_path, tmp_path / "out")


def test_held_out_files_are_known_as_imports_know_them(tmp_path: Path, make_png: Png) -> None:
    """A test picture that is passed over is one that the corpus keeps; U+2028 ends no line of JSON."""
    words = "one two three four five six seven eight nine ten eleven twelve thirteen"
    (tmp_path / "T.JSONL").write_text(json.dumps({"a": f"{words}\u2028fourteen"}, ensure_ascii=False) + "\n", "utf-8")
    (tmp_path / "pictures").mkdir()
    for number, ending in enumerate(PICTURES):
        (tmp_path / "pictures" / f"{number}.{ending.upper()}").write_bytes(make_png(number))
    held = HeldOutIndex(HeldOut(texts=[str(tmp_path / "T.JSONL")], images=[str(tmp_path / "pictures")]))
    assert held.found_in(f"so {words} it is", []) is not None
    assert len(held.sha256) == len(PICTURES)
