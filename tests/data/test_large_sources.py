"""Sources of any size: no more of them is held than a record, and what is larger than that is counted."""

from __future__ import annotations

import io
import json
import os
import random
import re
import resource
import tarfile
import tempfile
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from kosmos_data import BadSample, Corpus, Document, ShardWriter, Text
from kosmos_data.adapters import _json_list, convert
from kosmos_data.adapters._files import walk
from kosmos_data.adapters._tar_samples import tar_samples
from kosmos_data.check import check_corpus, index_folder
from kosmos_data.errors import Tally
from kosmos_data.reader import split_name

Png = Callable[..., bytes]
NAMES = ["a.jpg", "a.txt", "A.TXT", "a.JPG", "a.json", "a.v2.jpg", "a.v2.txt", "a.v2.", "a.", "b/a.txt", "./a.txt", "c"]
NAMES += ["\udcff.txt", "b/a.v1.x.JSON", "b.b/a.jpg", "d.txt", "d.v1.txt", "d.v1.jpg"]


def odd_tar(path: Path, rng: random.Random) -> dict[str, tuple[bytes | None, str]]:
    """Members in any order, some of one name, some links. Returned are bytes or target of each name, the last of it."""
    found: dict[str, tuple[bytes | None, str]] = {}
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for number in range(rng.randint(1, 30)):
            member, data = tarfile.TarInfo(rng.choice(NAMES)), b"%d" % number
            name = str(PurePosixPath(member.name))
            member.type = rng.choice([tarfile.REGTYPE] * 4 + [tarfile.SYMTYPE, tarfile.LNKTYPE])
            member.linkname = rng.choice(NAMES) if member.type != tarfile.REGTYPE else ""
            member.size = len(data) if member.type == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(data))
            target = PurePosixPath(member.linkname)
            if member.type == tarfile.SYMTYPE:
                target = PurePosixPath(name).parent / target
            found[name] = (data, "") if member.type == tarfile.REGTYPE else (None, str(target))
    return found


def held(members: dict[str, tuple[bytes | None, str]]) -> list[dict[str, bytes]]:
    """The files of each sample, by dictionaries that hold the whole tar."""

    def content(name: str) -> bytes | None:
        for _ in range(8):
            data, target = members.get(name, (None, ""))
            if data is not None or not target:
                return data
            name = target
        return None

    stems: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for name in members:
        stem, extension = split_name(name)
        stems[stem][extension] = name
    samples: list[dict[str, str]] = []
    for kinds in stems.values():
        cut: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for extension, name in kinds.items():
            last = extension.rpartition(".")[2]
            cut[name[: -len(last) - 1] if last else name][last] = name
        samples += [kinds] if kinds.keys() & {"json", "txt"} else cut.values()
    return [{kind: data for kind, name in one.items() if (data := content(name)) is not None} for one in samples]


def test_samples_are_those_of_a_tar_held_whole(tmp_path: Path) -> None:
    for seed in range(150):
        path = tmp_path / "a.tar"
        members = odd_tar(path, random.Random(seed))
        assert [read() for _, read in tar_samples(path, Tally())] == held(members), seed


VALUES: list[Any] = [
    None,
    True,
    -1.5e-7,
    0,
    123456789,
    "",
    'a "b" \\ \n',
    "日本😀",
    [],
    {},
    [[1], {"a": [2]}],
    {"]": "["},
]


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 20])
def test_entries_are_those_of_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(_json_list, "_CHUNK", chunk)
    path = tmp_path / "a.json"
    for seed in range(60):
        rng = random.Random(seed)
        wanted = rng.choices(VALUES, k=rng.randint(0, 6))
        options: dict[str, Any] = {"ensure_ascii": rng.random() < 0.5, "indent": rng.choice([None, 0, 3])}
        path.write_text(rng.choice(["", "\ufeff"]) + json.dumps(wanted, **options) + rng.choice(["", " \r\n"]))
        assert list(_json_list.entries(path)) == wanted, seed
        body = {name: rng.choice(VALUES) for name in rng.sample(["a", "b", "[", "c"], 3)} | {"here": wanted, "z": 1}
        path.write_text(json.dumps(body, **options))
        assert list(_json_list.entries(path, "here")) == wanted, seed


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("", None, "not valid JSON: Expecting value, at character 0"),
        ("[1, 2", None, "not valid JSON: Expecting ',', at character 5"),
        ("[1, 2] 3", None, "not valid JSON: Extra data, at character 7"),
        ("[1,, 2]", None, "not valid JSON: Expecting value, at character 3"),
        ('[1, "a', None, "not valid JSON: Unterminated string"),
        ('{"a": 1}', None, "a list is expected; it holds an object with a"),
        ("5", None, "a list is expected; it holds a number"),
        ("[1]", "a", 'an object with a list under "a" is expected; it holds a list'),
        ('{"b": [1], "a": 1}', "a", 'an object with a list under "a" is expected; it holds an object with b, a'),
        ('{"b": [1]', "a", "not valid JSON: Expecting '}'"),
        ("[" * 10**5, None, "not valid JSON: maximum recursion depth"),
        ("[" + "1" * 5000 + "]", None, "not valid JSON: Exceeds the limit"),
    ],
)
def test_other_json_is_named(tmp_path: Path, text: str, key: str | None, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        list(_json_list.entries(path, key))
    assert str(caught.value).startswith(f"{path}: ")


def test_millions_of_lists_are_no_record(tmp_path: Path) -> None:
    """Of which 64 MB would be a gigabyte of lists; a long text is a record."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": [' + "[]," * (3 << 20) + '[]]}\n{"text": "' + "a, " * (3 << 20) + '"}\n{"text": "a"}\n')
    shards, tally = convert("text", path, tmp_path / "out")
    assert sum(shard.documents for shard in shards) == 2
    assert tally == {"broken json": 1}


def test_a_list_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_json_list, "_CHUNK", 1 << 16)
    path = tmp_path / "a.json"
    path.write_text(
        json.dumps({"other": [{"number": number} for number in range(20_000)], "here": [["x" * 99]] * 20_000})
    )
    tracemalloc.start()
    try:
        assert sum(1 for _ in _json_list.entries(path, "here")) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 1 << 20 < path.stat().st_size
    finally:
        tracemalloc.stop()


def test_a_sample_too_large_to_be_one(tmp_path: Path, make_png: Png) -> None:
    """Zeros that the disk does not even hold: counted in every door, and their neighbours are read."""
    path, size = tmp_path / "in" / "a.tar", (512 << 20) + 1
    path.parent.mkdir()
    with path.open("wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in (
            ("1.jpg", make_png(1)),
            ("1.txt", b"a dog"),
            ("2.txt", None),
            ("3.jpg", make_png(3)),
            ("3.txt", b"x"),
        ):
            member = tarfile.TarInfo(name)
            member.size = size if data is None else len(data)
            if data is not None:
                tar.addfile(member, io.BytesIO(data))
                continue
            file.write(member.tobuf())
            file.truncate(file.seek(-(-size // 512) * 512, os.SEEK_CUR))
            tar.offset = file.tell()
    _, tally = convert("img2dataset", path, tmp_path / "out")
    assert [document.key for document in Corpus(tmp_path / "out")] == ["a/1", "a/3"]
    assert tally == {"sample too large": 1}
    index_folder(path.parent)
    corpus = Corpus(path.parent)
    assert [corpus[place].text for place in (0, 2)] == ["a dog", "x"]
    with pytest.raises(BadSample, match="sample too large"):
        corpus[1]
    (report,) = check_corpus(path.parent)
    assert report.bad == {"sample too large": 1}


def test_what_an_error_ended_can_be_tried_again(tmp_path: Path) -> None:
    """An import whose source breaks off leaves no shard; one that a person stops keeps those that are whole."""

    def documents(error: BaseException) -> Iterator[Document]:
        yield from (Document(str(number), [Text("a")]) for number in range(5))
        raise error

    def write(error: BaseException) -> None:
        with ShardWriter(tmp_path / "out", max_documents=2) as writer:
            for document in documents(error):
                writer.write(document)

    with pytest.raises(ValueError, match="cut off"):
        write(ValueError("cut off"))
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(KeyboardInterrupt):
        write(KeyboardInterrupt())
    assert len(index_folder(tmp_path / "out")) == 2


def _write_texts(folder: Path, sizes: tuple[int, ...]) -> None:
    with ShardWriter(folder, max_documents=1) as writer:
        for size in sizes:
            writer.write(Document(str(size), [Text("a" * size)]))


def test_a_disk_that_is_full_has_room_again(tmp_path: Path) -> None:
    """What was written before the disk was full is removed, and the same folder can be used."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            _write_texts(tmp_path / "out", (1000, 1000, 1 << 21))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_may_not_be_read_is_counted() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own are closed to others
        root, tally, user = Path(name), Tally(), os.geteuid()
        for inside in ("a/1.txt", "lost+found/2.txt", "z.txt", ".hidden/3.txt", "b/.4.txt"):
            (root / inside).parent.mkdir(exist_ok=True)
            (root / inside).write_text("x")
        root.chmod(0o755)
        (root / "lost+found").chmod(0)
        try:
            if user == 0:  # who may read everything
                os.seteuid(65534)
            found = [str(path.relative_to(root)) for path in walk(root, tally)]
        finally:
            os.seteuid(user)
            (root / "lost+found").chmod(0o755)
    assert found == ["a/1.txt", "z.txt"]
    assert tally == {"may not be read": 1}
    assert tally.records == 0
