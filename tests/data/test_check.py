"""kosmos data check finds what is broken; kosmos data index adopts the tars of other writers."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from kosmos_data import Corpus, Document, Image, Text, write_shards
from kosmos_data.check import check_corpus, index_folder
from kosmos_data.index import ShardInfo, read_index, write_index


def reports(root: Path) -> dict[str, tuple[list[str], dict[str, int]]]:
    return {report.name: (report.problems, dict(report.bad)) for report in check_corpus(root)}


def rehash(root: Path) -> None:
    """Make the index agree with changed tars, so that only the content is wrong."""
    shards, _ = read_index(str(root))
    write_index(
        root,
        [
            ShardInfo(
                **{name: getattr(shard, name) for name in ("name", "documents", "images", "characters")},
                bytes=(root / shard.name).stat().st_size,
                sha256=hashlib.sha256((root / shard.name).read_bytes()).hexdigest(),
            )
            for shard in shards
        ],
    )


def test_a_good_corpus_has_no_problem(corpora: Path) -> None:
    assert set(map(repr, reports(corpora / "pages").values())) == {"([], {})"}
    assert sum(report.documents for report in check_corpus(corpora / "pages")) == 40


def test_each_kind_of_damage_is_named(tmp_path: Path, make_png: Callable[..., bytes]) -> None:
    documents = [Document(str(n), [Image(make_png(n)), Text("x")]) for n in range(8)]
    write_shards(tmp_path, documents, 2)
    flipped, short, gone, fine = (tmp_path / f"{n:06d}.tar" for n in range(4))
    data = bytearray(flipped.read_bytes())
    data[data.index(b"IDAT") + 20] ^= 255
    flipped.write_bytes(data)
    short.write_bytes(short.read_bytes()[:1400])
    gone.unlink()
    (fine.with_suffix(".tar.idx")).write_bytes(b"123")
    found = reports(tmp_path)
    assert found["000000.tar"] == (["content changed: sha256 differs"], {"image broken": 1})
    assert "truncated to 1400 of" in found["000001.tar"][0][0]
    assert found["000001.tar"][1] == {"broken tar": 2}
    assert found["000002.tar"] == (["missing"], {})
    assert "not a multiple of 8" in found["000003.tar"][0][0]


def test_doubled_keys_are_found(tmp_path: Path) -> None:
    """Our writer numbers a second one, another's may not."""
    with tarfile.open(tmp_path / "000000.tar", "w") as tar:
        for key in "aba":
            body = b'{"segments":[{"text":"x"}]}'
            member = tarfile.TarInfo(f"{key}.json")
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    index_folder(tmp_path)
    assert reports(tmp_path)["000000.tar"][0] == ["1 keys occur twice, first 'a'"]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_index_adopts_tars_of_other_writers(tmp_path: Path, form: int) -> None:
    """The same documents, written by the standard library, with folders in between and long names."""
    documents = [Document(f"part/{'n' * 90 * (n % 2)}{n}", [Text(f"text {n}")]) for n in range(6)]
    with tarfile.open(tmp_path / "other.tar", "w", format=form) as tar:
        for document in documents:
            folder = tarfile.TarInfo("part")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
            body = b'{"segments":[{"text":"%s"}]}' % document.segments[0].text.encode()
            info = tarfile.TarInfo(f"{document.key}.json")
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    (info,) = index_folder(tmp_path)
    assert (info.documents, info.characters) == (6, 36)
    assert list(Corpus(tmp_path)) == documents
    with pytest.raises(ValueError, match="already has"):
        index_folder(tmp_path)


def test_index_refuses_a_truncated_tar(tmp_path: Path) -> None:
    write_shards(tmp_path / "c", [Document(str(n), [Text("x" * 3000)]) for n in range(3)])
    (tmp_path / "d").mkdir()
    (tmp_path / "d/x.tar").write_bytes((tmp_path / "c/000000.tar").read_bytes()[:6000])
    with pytest.raises(ValueError, match=r"x.tar is (truncated|not a whole tar)"):
        index_folder(tmp_path / "d")
    with pytest.raises(FileNotFoundError, match=r"no \.tar"):
        index_folder(tmp_path)
