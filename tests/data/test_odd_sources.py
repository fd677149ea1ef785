"""Sources as other people's computers leave them: packed, of another encoding, closed to us, with names of Windows."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kosmos_data import Corpus
from kosmos_data.adapters import convert
from kosmos_data.adapters._files import walk
from kosmos_data.cli import main
from kosmos_data.errors import Tally
from kosmos_data.replay import order, replay

Png = Callable[..., bytes]
SAID = {"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A dog."}]}
ALPACA = {"instruction": "Do.", "output": "Done."}
COCO = {"images": [{"id": 1, "file_name": "1.png"}], "annotations": [{"image_id": 1, "caption": "a dog"}]}
TEXTS: dict[str, tuple[str, str]] = {
    "csv": (".csv", "filepath,title\n1.png,a dog\n"),
    "llava": (".json", json.dumps([SAID])),
    "sharegpt": (".jsonl", json.dumps(SAID) + "\n"),
    "alpaca": (".json", json.dumps([ALPACA])),
    "coco-captions": (".json", json.dumps(COCO)),
    "text": (".jsonl", '{"text": "a dog"}\n'),
}
"""A source of one document by format: ending, content."""


@pytest.fixture
def place(tmp_path: Path, make_png: Png) -> Path:
    (tmp_path / "1.png").write_bytes(make_png(1))
    return tmp_path


def documents(name: str, source: Path, out: Path, images: Path) -> int:
    shards, tally = convert(name, source, out, images)
    assert not tally
    return sum(shard.documents for shard in shards)


@pytest.mark.parametrize("name", TEXTS)
def test_a_packed_file_is_read(place: Path, name: str) -> None:
    ending, text = TEXTS[name]
    for suffix, pack in (("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress)):
        path = place / f"source{ending}{suffix}"
        path.write_bytes(pack(b"\xef\xbb\xbf" + text.encode()))
        assert documents(name, path, place / f"out{suffix}", place) == 1, path.name
    path.write_bytes(path.read_bytes()[:-9])  # the last, cut off
    with pytest.raises(ValueError, match=f"{path.name} is cut off or damaged"):
        convert(name, path, place / "none", place)


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda text: text.encode("utf-16"), "in UTF-16: save it as UTF-8"),
        (lambda text: b"PK\x03\x04" + text.encode(), "a zip, as spreadsheets and documents are"),
        (lambda text: b"\xd0\xcf\x11\xe0" + text.encode(), "a document of an office program"),
        (lambda text: b"PAR1" + text.encode(), "parquet: name it so"),
    ],
)
def test_what_is_no_text_is_named(place: Path, name: str, make: Callable[[str], bytes], message: str) -> None:
    ending, text = TEXTS[name]
    path = place / f"source{ending}"
    path.write_bytes(make(text))
    with pytest.raises(ValueError, match=message) as caught:
        convert(name, path, place / "out", place)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["csv", "coco-captions", "karpathy", "llava"])
def test_names_of_other_computers(place: Path, name: str) -> None:
    """Windows' backslashes, and an é of one character where the folder has two, or the other way round."""
    (place / "sub").mkdir()
    written = {unicodedata.normalize(form, "sub/é.png"): unicodedata.normalize(other, "sub\\é.png")
               for form, other in (("NFC", "NFD"), ("NFD", "NFC"))}  # fmt: skip
    for number, (here, there) in enumerate(written.items()):
        shutil.copy(place / "1.png", place / here)
        said = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A dog."}]
        body: Any = {
            "coco-captions": COCO | {"images": [{"id": 1, "file_name": there}]},
            "karpathy": {"images": [{"filename": there, "split": "train", "sentences": [{"raw": "a dog"}]}]},
            "llava": [{"image": there, "conversations": said}],
        }.get(name)
        path = place / f"{number}{'.csv' if name == 'csv' else '.json'}"
        path.write_text(f"filepath,title\n{there},a dog\n" if name == "csv" else json.dumps(body))
        assert documents(name, path, place / f"out{number}", place) == 1, there
        (place / here).unlink()
    path.write_text(f"filepath,title\n..\\{place.name}\\1.png,a dog\n1.png,a dog\n")
    assert convert("csv", path, place / "out", place)[1] == {"image missing": 1}  # not a way out of the folder


@contextmanager
def somebody_else() -> Iterator[None]:
    """Who runs the tests may read everything; nobody may not."""
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        yield
    finally:
        os.seteuid(user)


def test_what_may_not_be_read_is_counted(make_png: Png) -> None:
    """A picture, a caption and a folder that are closed to us: their neighbours are imported."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own are closed to others
        root = Path(name)
        (root / "in" / "lost+found").mkdir(parents=True)
        (root / "out").mkdir()
        for number in range(4):
            (root / "in" / f"{number}.png").write_bytes(make_png(number))
            (root / "in" / f"{number}.txt").write_text("a dog")
        (root / "in" / "lost+found" / "5.png").write_bytes(make_png(5))
        root.chmod(0o755)
        (root / "out").chmod(0o777)
        for closed in ("1.png", "2.txt", "lost+found"):
            (root / "in" / closed).chmod(0)
        try:
            with somebody_else():
                _, tally = convert("folder", root / "in", root / "out")
            assert [document.key for document in Corpus(root / "out")] == ["0", "3"]
        finally:
            (root / "in" / "lost+found").chmod(0o755)
        assert tally == {"image missing": 1, "may not be read": 2}
        assert tally.records == 2
        assert "1.png: Permission denied" in tally.examples["image missing"][0]


def test_folders_in_folders(tmp_path: Path) -> None:
    """More of them than Python calls functions in functions."""
    deepest = tmp_path
    try:
        for _ in range(1200):
            deepest /= "d"
            deepest.mkdir()
        (deepest / "a.txt").write_text("x")
        assert [path.name for path in walk(tmp_path, Tally())] == ["a.txt"]
        (deepest / "a.txt").unlink()
    finally:
        while deepest != tmp_path:
            deepest.rmdir()
            deepest = deepest.parent


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: replay(None, None, -1), "step -1 must be at least 0"),  # type: ignore[arg-type]
        (lambda path: order(None, None, 0, 0, 1), "ranks 0 must be at least 1"),  # type: ignore[arg-type]
        (lambda path: order(None, None, 1, -1, 1), "start -1 must be at least 0"),  # type: ignore[arg-type]
        (lambda path: order(None, None, 1, 0, 0), "steps 0 must be at least 1"),  # type: ignore[arg-type]
        (lambda path: order(None, None, 1, 0, 1, path), "is no state of a loader"),  # type: ignore[arg-type]
    ],
)
def test_steps_that_are_none(tmp_path: Path, call: Callable[[Path], Iterator[Any]], message: str) -> None:
    (tmp_path / "state.json").write_text("[1]")
    with pytest.raises(ValueError, match=message):
        list(call(tmp_path / "state.json"))


def test_an_empty_source_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kosmos.cli import main as kosmos

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    assert kosmos(["data", "import", "text", "a.txt", "--out", ""]) == 2
    assert kosmos(["data", "import", "text", "a.txt", "--out="]) == 2
    assert os.listdir() == ["a.txt"]
    assert main(["import", "text", "a.txt", "--out", "out"]) == 0
