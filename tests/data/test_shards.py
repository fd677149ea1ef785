"""Documents on disk: what is written can be read, by us and by webdataset, and damage is named."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from kosmos_data import BadSample, Corpus, Document, Image, ShardWriter, Span, Text, write_shards
from kosmos_data.check import check_corpus
from kosmos_data.document import from_files, to_files
from kosmos_data.index import write_offsets
from kosmos_data.reader import parse_sample
from kosmos_data.tar import TarWriter, header

FILES = st.dictionaries(st.sampled_from(["json", "0.jpg", "1.ogg", "txt"]), st.binary(max_size=1100))

SEGMENTS = st.one_of(
    st.builds(Text, st.text(max_size=40), st.booleans()),
    st.builds(Span, st.text(max_size=40)),
    st.builds(Image, st.binary(min_size=1, max_size=700)),
)
DOCUMENTS = st.builds(
    Document,
    st.from_regex(r"[a-z0-9_-]{1,20}(/[a-z0-9]{1,5})?", fullmatch=True),
    st.lists(SEGMENTS, min_size=1, max_size=6),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)


@given(DOCUMENTS)
def test_files_round_trip(document: Document) -> None:
    assert from_files(document.key, to_files(document)) == document


@given(documents=st.lists(DOCUMENTS, min_size=1, max_size=12, unique_by=lambda d: d.key), size=st.integers(1, 5))
def test_corpus_round_trip(tmp_path_factory: pytest.TempPathFactory, documents: list[Document], size: int) -> None:
    root = tmp_path_factory.mktemp("c")
    write_shards(root, documents, max_documents=size)
    assert list(Corpus(root)) == documents
    assert len(list(root.glob("*.tar"))) == -(-len(documents) // size)


def test_same_documents_give_the_same_bytes(tmp_path: Path) -> None:
    documents = [Document(f"{n}", [Image(bytes([n]) * 9), Text("x")]) for n in range(7)]
    shards = [write_shards(tmp_path / name, documents, 3) for name in ("a", "b")]
    assert shards[0] == shards[1]
    assert (tmp_path / "a/index.json").read_bytes() == (tmp_path / "b/index.json").read_bytes()


def test_webdataset_reads_our_shards(corpora: Path) -> None:
    ours = Corpus(corpora / "pages")
    urls = [ours.shard_path(shard) for shard in range(len(ours.shards))]
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in theirs] == [document.key for document in ours]
    assert [from_files(s["__key__"], s) for s in theirs] == list(ours)


@given(st.lists(st.tuples(st.text("ab/-_ü", min_size=1, max_size=110), FILES)))
def test_tars_are_those_of_webdataset(samples: list[tuple[str, dict[str, bytes]]]) -> None:
    """Names longer than a header's and of more than ASCII too, contents of any length."""
    ours, theirs = io.BytesIO(), io.BytesIO()
    writer = TarWriter(ours)
    fixed = {"encoder": False, "mtime": 0, "user": "kosmos", "group": "kosmos", "mode": 0o644}
    with webdataset.TarWriter(theirs, **fixed) as peer:
        for key, files in samples:
            writer.write(key, files)
            peer.write({"__key__": key, **files})
            assert writer.offset == peer.tarstream.offset
    writer.close()
    assert ours.getvalue() == theirs.getvalue()
    for size in (8**11 - 1, 8**11):
        info = tarfile.TarInfo("a.mp4")
        info.size, info.mode, info.uname, info.gname = size, 0o644, "kosmos", "kosmos"
        assert header("a.mp4", size) == info.tobuf(tarfile.PAX_FORMAT)


def test_writing_needs_no_torch() -> None:
    """It would take each process that makes a corpus two seconds."""
    words = "import sys, kosmos_data.shards; sys.exit(any(name in sys.modules for name in ('torch', 'webdataset')))"
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", words], check=True, env=os.environ | path)


def test_offsets_end_with_the_end_of_the_last_sample(corpora: Path) -> None:
    raw = (corpora / "pairs/000000.tar.idx").read_bytes()
    assert len(raw) == 8 * (16 + 1)
    end = int.from_bytes(raw[-8:], "little")
    assert set((corpora / "pairs/000000.tar").read_bytes()[end:]) == {0}


def test_a_killed_writer_leaves_no_shard(tmp_path: Path) -> None:
    def documents() -> Iterator[Document]:
        yield Document("a", [Text("x")])
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_shards(tmp_path / "c", documents())
    assert list((tmp_path / "c").iterdir()) == []


@pytest.mark.parametrize(
    ("key", "segments"), [("a.b", [Text("x")]), ("", [Text("x")]), ("a", []), ("a//b", [Text("x")])]
)
def test_malformed_documents_are_refused(key: str, segments: list) -> None:
    with pytest.raises(ValueError, match=r"key|segments"):
        to_files(Document(key, segments))


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        (
            [Text("a"), "b"],
            r"document 'k', segment 1: a str, where one of Text, Persona, Image, Span, Entity, Audio, Video, Fused is",
        ),
        ([Image("a.jpg")], r"segment 0: an Image holds the bytes of a picture file, here a str"),
        ([Text(b"a")], r"segment 0: a Text holds a str, here a bytes"),
        ([None], r"segment 0: a NoneType"),
    ],
)
def test_wrong_segments_are_named_with_their_place(tmp_path: Path, segments: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_shards(tmp_path, [Document("k", segments)])


def test_no_documents_are_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not one document to write"):
        write_shards(tmp_path / "c", [])
    assert not list((tmp_path / "c").iterdir())


def test_keys_are_made_of_any_name(tmp_path: Path) -> None:
    """A person's file names: dots, control characters, twice the same, five thousand letters."""
    names = ["photo.final.v2", "photo_final_v2", "ä ö/日本", "a\x00b", "", ".", "../up", "a", "a", "a", "x" * 5000]
    write_shards(tmp_path, [Document(name, [Text("x")]) for name in names], max_documents=100)
    keys = [document.key for document in Corpus(tmp_path)]
    assert keys[:-1] == ["photo_final_v2", "photo_final_v2-2", "ä ö/日本", "a_b", "_", "_-2", "up", "a", "a-2", "a-3"]
    assert len(keys[-1]) == 200
    assert all(report.good for report in check_corpus(tmp_path))


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "neither json nor txt"),
        ({"json": b"{"}, "broken json"),
        ({"json": b"[]"}, "broken json"),
        ({"json": b'{"segments":[{"sound":"x"}]}'}, "broken json"),
        ({"json": b'{"segments":[{"text":1}]}'}, "broken json"),
        ({"json": rb'{"segments":[{"text":"\ud800"}]}'}, "broken json"),
        ({"json": rb'{"segments":[{"span":"\udfff"}]}'}, "broken json"),
        ({"json": b'{"segments":[]}'}, "empty"),
        ({"json": b'{"segments":[{"image":"0.png"}]}'}, "image missing"),
    ],
)
def test_bad_samples_name_their_reason(files: dict[str, bytes], reason: str) -> None:
    with pytest.raises(BadSample) as caught:
        from_files("k", files)
    assert caught.value.reason == reason


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        Corpus(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="kosmos data index"):
        Corpus(tmp_path)
    with ShardWriter(tmp_path / "empty"):
        pass
    with pytest.raises(ValueError, match="holds no documents"):
        Corpus(tmp_path / "empty")
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(ValueError, match="not a shard index"):
        Corpus(tmp_path)


def test_truncated_and_missing_shards(tmp_path: Path) -> None:
    write_shards(tmp_path, [Document(str(n), [Text("x" * 400)]) for n in range(4)], 2)
    tar = tmp_path / "000001.tar"
    tar.write_bytes(tar.read_bytes()[:1500])
    with pytest.raises(ValueError, match=r"1500 bytes, index.json says .* truncated"):
        Corpus(tmp_path)
    tar.unlink()
    with pytest.raises(FileNotFoundError, match=r"000001.tar is listed"):
        Corpus(tmp_path)


def test_offsets_of_another_tar_are_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, [Document(str(n), [Text("x")]) for n in range(4)], 3)
    (tmp_path / "000000.tar.idx").write_bytes((tmp_path / "000001.tar.idx").read_bytes())
    with pytest.raises(ValueError, match="lists 1 samples"):
        Corpus(tmp_path)[0]


def test_a_broken_header_is_a_bad_sample(tmp_path: Path) -> None:
    write_shards(tmp_path, [Document(str(n), [Text("x")]) for n in range(3)])
    tar = bytearray((tmp_path / "000000.tar").read_bytes())
    offset = int.from_bytes((tmp_path / "000000.tar.idx").read_bytes()[8:16], "little")
    tar[offset + 100] ^= 1
    (tmp_path / "000000.tar").write_bytes(tar)
    corpus = Corpus(tmp_path)
    assert corpus[0].key == "0"
    assert corpus[2].key == "2"
    with pytest.raises(BadSample, match="broken tar"):
        corpus[1]


def test_a_header_with_a_negative_size_does_not_hang() -> None:
    """Its checksum is right: "-1000" is octal, and the next header would begin where this one does."""
    header = bytearray(512)
    header[:6], header[124:129], header[156:157], header[148:156] = b"a.json", b"-1000", b"0", b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(BadSample, match=r"broken tar: a\.json has -512 bytes"):
        parse_sample(bytes(header) + bytes(512))


@pytest.mark.parametrize("offsets", [[0, 9999, 1536], [0, 2**63, 2**64 - 1], [0, 1536, 1 << 20]])
def test_offsets_that_do_not_ascend_within_the_tar_are_refused(tmp_path: Path, offsets: list[int]) -> None:
    write_shards(tmp_path, [Document(str(n), [Text("x")]) for n in range(2)])
    write_offsets(tmp_path / "000000.tar", offsets)
    with pytest.raises(ValueError, match="idx does not ascend within the tar; run: kosmos data check"):
        Corpus(tmp_path)[0]
    assert "does not ascend" in next(check_corpus(tmp_path)).problems[0]


def test_samples_of_other_writers_with_long_names(tmp_path: Path) -> None:
    import io
    import tarfile

    name = "folder/" + "k" * 180
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        body = json.dumps({"segments": [{"text": "x"}]}).encode()
        info = tarfile.TarInfo(name + ".json")
        info.size = len(body)
        tar.addfile(info, io.BytesIO(body))
    key, files = parse_sample(buffer.getvalue())
    assert (key, files) == (name, {"json": body})
