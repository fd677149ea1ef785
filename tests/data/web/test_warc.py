"""WARC files in every state of repair: what is whole is read, what is broken costs itself."""

from __future__ import annotations

import gzip
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from kosmos_data.web import warc
from kosmos_data.web.html import html_rules

pytest.importorskip("fastwarc")


def archive(path: Path, count: int = 12) -> dict[str, bytes]:
    """Write pages and images in turn; return the images."""
    images = {f"https://example.org/{n}.png": random.Random(n).randbytes(2000) for n in range(count)}
    with warc.WarcWriter(path) as writer:
        for number, (url, data) in enumerate(images.items()):
            writer.write(f"https://example.org/{number}.html", "text/html; charset=latin1", b"<p>page %d" % number * 30)
            writer.write(url, "image/png", data)
    return images


def record(
    head: str, body: bytes, url: str = "https://example.org/x", kind: str = "response", length: int | None = None
) -> bytes:
    """A record written by hand."""
    block = head.encode() + b"\r\n\r\n" + body
    size = len(block) if length is None else length
    lines = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2024-01-01T00:00:00Z\r\n"
    lines += f"Content-Type: application/http; msgtype={kind}\r\nContent-Length: {size}\r\n\r\n"
    return lines.encode() + block + b"\r\n\r\n"


PAGE = "HTTP/1.1 200 OK\r\nContent-Type: text/html"
FORMS: dict[str, Callable[[bytes], bytes]] = {
    "members": lambda data: data,
    "plain": gzip.decompress,
    "whole": lambda data: gzip.compress(gzip.decompress(data)),
}


@pytest.mark.parametrize("form", FORMS)
def test_pages_and_images_of_a_warc(tmp_path: Path, form: str) -> None:
    images = archive(tmp_path / "a.warc.gz")
    path = tmp_path / "b.warc"
    path.write_bytes(FORMS[form]((tmp_path / "a.warc.gz").read_bytes()))
    skipped: Counter[str] = Counter()
    found = list(warc.pages(path, skipped))
    assert found == [(f"https://example.org/{n}.html", b"<p>page %d" % n * 30, "iso-8859-1") for n in range(12)] or (
        [(url, body) for url, body, _ in found]
        == [(f"https://example.org/{n}.html", b"<p>page %d" % n * 30) for n in range(12)]
    )
    assert not skipped
    places = {response.url: response.position for response in warc.responses(path, skipped) if response.is_image}
    assert {url: warc.image_at(path, position, url) for url, position in places.items()} == images
    assert warc.image_at(path, 0, "https://example.org/none.png") is None


def test_the_same_responses_give_the_same_bytes(tmp_path: Path) -> None:
    archive(tmp_path / "a.warc.gz")
    archive(tmp_path / "b.warc.gz")
    assert (tmp_path / "a.warc.gz").read_bytes() == (tmp_path / "b.warc.gz").read_bytes()


def test_what_is_no_page_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.warc"
    zipped = gzip.compress(b"<p>zipped")
    path.write_bytes(
        record(PAGE, b"<p>one")
        + record("HTTP/1.1 404 Not Found\r\nContent-Type: text/html", b"<p>no")
        + record(PAGE, b"<p>dns", url="dns:example.org")
        + record("GET / HTTP/1.1\r\nHost: example.org", b"", kind="request")
        + record("HTTP/1.1 200 OK\r\nContent-Type: application/pdf", b"%PDF")
        + record(PAGE + "; charset=koi8-r", b"<p>" + "привет".encode("koi8-r"), url="<https://example.org/brackets>")
        + record(PAGE + "\r\nContent-Encoding: gzip", zipped)
        + record(PAGE + "\r\nContent-Encoding: gzip", b"<p>said to be zipped")
        + record(PAGE + "\r\nContent-Encoding: gzip", zipped[:12] + b"\xff" * 9)
        + record(PAGE + "\r\nContent-Encoding: gzip", gzip.compress(bytes(50_000_000)))
        + record(PAGE + "\r\nTransfer-Encoding: chunked", b"9\r\n<p>chunks\r\n0\r\n\r\n")
        + record(PAGE, b"<p>" + b"x" * html_rules.MAX_BYTES)
    )
    skipped: Counter[str] = Counter()
    found = list(warc.pages(path, skipped))
    assert [body.decode("koi8-r") for _, body, _ in found] == [
        "<p>one", "<p>привет", "<p>zipped", "<p>said to be zipped", "<p>chunks",
    ]  # fmt: skip
    assert found[1] == ("https://example.org/brackets", "<p>привет".encode("koi8-r"), "koi8-r")
    assert skipped == {
        warc.NOT_OK: 1, warc.OTHER_SCHEME: 1, warc.OTHER_TYPE: 1, warc.UNDECODABLE: 1, warc.TOO_LARGE: 2,
    }  # fmt: skip


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("length", [3, 60, 5000, 10**15, -1])
def test_a_wrong_length_costs_one_record(tmp_path: Path, length: int, zipped: bool) -> None:
    pack = gzip.compress if zipped else bytes
    good = [pack(record(PAGE, b"<p>page %d" % number * 20)) for number in range(6)]
    good[3] = pack(record(PAGE, b"<p>broken" * 20, length=length))
    (tmp_path / "a.warc").write_bytes(b"".join(good))
    skipped: Counter[str] = Counter()
    bodies = [body for _, body, _ in warc.pages(tmp_path / "a.warc", skipped)]
    assert bodies == [b"<p>page %d" % number * 20 for number in (0, 1, 2, 4, 5)]
    assert skipped[warc.BROKEN] >= 1


def test_a_file_that_was_cut_off_keeps_its_beginning(tmp_path: Path) -> None:
    archive(tmp_path / "a.warc.gz")
    data = (tmp_path / "a.warc.gz").read_bytes()
    (tmp_path / "b.warc.gz").write_bytes(data[:-500])
    skipped: Counter[str] = Counter()
    found = [response.url for response in warc.responses(tmp_path / "b.warc.gz", skipped)]
    assert len(found) == 23
    assert skipped == {warc.BROKEN: 1}


def test_three_hundred_mutated_warcs(tmp_path: Path, mutate: Callable[[bytes, random.Random], bytes]) -> None:
    archive(tmp_path / "a.warc.gz", count=6)
    good, rng = (tmp_path / "a.warc.gz").read_bytes(), random.Random(5)
    kept: Counter[int] = Counter()
    broken: Counter[str] = Counter()
    for number in range(300):
        path = tmp_path / "m.warc"
        path.write_bytes(mutate(good if number % 2 else gzip.decompress(good), rng))
        kept[sum(1 for _ in warc.responses(path, broken))] += 1
    assert kept.total() == 300
    assert broken[warc.BROKEN] > 200
    assert sum(number * count for number, count in kept.items()) > 0.4 * 12 * 300
