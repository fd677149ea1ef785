"""Class 5 of hostile inputs: HTML that is deep, endless or a flood, and WARC files whose records lie."""

from __future__ import annotations

import gzip
import os
import random
import time
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from kosmos_data import BadSample
from kosmos_data.web.html.extract import extract
from kosmos_data.web.warc import BROKEN, pages, responses

SEEDS = int(os.environ.get("KOSMOS_SEEDS", "96")) // 8
PIECES = [
    "<p>words of a text",
    "<div class='x nav'>",
    "</div>",
    "<table><tr><td>",
    "&amp;" * 1000,
    "&#x110000;",
    "&bogus;",
    "<img src=a.png alt='b'>",
    "<img srcset='" + "a 1x," * 2000 + "'>",
    "<a href='" + "x" * 10**5 + "'>",
    "<b " + "a=1 " * 5000 + ">",
    "<script>" + "while(1);" * 1000 + "</script>",
    "<!--" * 1000,
    "<![CDATA[" * 100,
    "<svg><math>",
    "<base href='javascript:x'>",
    "<template><p>",
    "<plaintext>",
    "<textarea>",
    "<meta charset='utf-16'>",
    "\0" * 100,
    "<p>" * 5000,
    "<i><b>" * 2000,
    "<noscript>",
    "<img src='data:image/png;base64," + "A" * 10**5 + "'>",
    "<picture><source srcset='a b c'>",
    "<iframe src='file:///etc/passwd'>",
    "<style>@import url(http://169.254.169.254/)</style>",
    "<object data='x'>",
    "\u202e\u0301",
    "<li><a>x</a>" * 1000,
    "<p>" + "a" * 10**6,
]
BOMBS = [
    zlib.compress(bytes(10**8), 1),
    gzip.compress(gzip.compress(bytes(10**8), 1)),
    gzip.compress(b"<p>" * 10**7, 1),
]
CHARSETS = [
    None,
    "utf-8",
    "utf-7",
    "utf-16",
    "x-user-defined",
    "idna",
    "rot13",
    "zip",
    "undefined",
    "a" * 1000,
    "\0",
    "iso-2022-jp",
    "hz",
]


def page(rng: random.Random) -> bytes:
    html = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 12))) * rng.choice([1, 1, 1, 20])
    data = html.encode(rng.choice(["utf-8", "utf-16", "utf-32", "cp037"]), "replace")
    if rng.random() < 0.3:
        changed = bytearray(data)
        for _ in range(rng.randint(1, 200)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        data = bytes(changed)
    return data[: rng.choice([len(data), len(data) // 2])]


def read(html: bytes, address: str, charset: str | None) -> None:
    """What a page gives is text and addresses of the web; a page that gives nothing is left out, and counted."""
    with suppress(BadSample):
        for node in extract(html, address, charset).nodes:
            assert isinstance(node, str) or node.url.startswith(("http://", "https://")), node


def test_pages(use: Callable[..., str]) -> None:
    """None ends the run over all of them."""
    addresses = [
        "http://a.example/b",
        "x" * 10**5,
        "",
        "http://[::1",
        "data:text/html,x",
        "http://a\0b/",
        "//",
        "http://" + "a." * 2000,
    ]

    for seed in range(SEEDS):
        rng = random.Random(f"page {seed}")
        assert use(seed, read, page(rng), rng.choice(addresses), rng.choice(CHARSETS)) == "used", seed


def record(rng: random.Random, inner: bytes) -> bytes:
    """One record; each of its lengths, types and encodings is usually right."""
    body = rng.choice([inner, inner, inner, gzip.compress(inner), *BOMBS, b""])
    encoding = rng.choice(["", "", "", "gzip", "deflate", "br", "gzip, gzip, gzip", "x" * 1000])
    status, media = rng.choice([200] * 6 + [404, 99999999999, -1]), rng.choice(["text/html"] * 3 + ["image/png", ""])
    head = f"HTTP/1.1 {status} OK\r\nContent-Type: {media}\r\n"
    head += (
        f"Content-Encoding: {encoding}\r\nContent-Length: {rng.choice([len(body), len(body), 10**12, -5])}\r\n"
        + "X: y\r\n" * rng.choice([0, 5000])
    )
    content = head.encode() + b"\r\n" + body
    length = rng.choice([len(content)] * 12 + [0, -1, 10**15, len(content) // 2, len(content) * 2])
    kind = rng.choice(["response"] * 8 + ["request", "revisit", "x" * 10**4])
    right = ["http://a.example/", "<http://b.example/>"] * 4
    address = rng.choice([*right, "file:///etc/passwd", "\0", "http://[::1", "x" * 10**5])
    lines = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {address}\r\n"
    lines += "Content-Type: application/http; msgtype=response\r\n"
    return lines.encode() + f"Content-Length: {length}\r\n\r\n".encode() + content + b"\r\n\r\n"


def test_warcs(tmp_path: Path, use: Callable[..., str]) -> None:
    """Of each the whole records are read, all else is counted; none ends the run over all of them."""
    whole, counted = 0, Counter[str]()

    def read_all(path: Path) -> None:
        nonlocal whole
        whole += sum(1 for _ in responses(path, counted))
        for _, html, charset in pages(path):
            read(html, "http://a.example/", charset)

    for seed in range(SEEDS):
        rng = random.Random(f"warc {seed}")
        data = b"".join(
            record(rng, record(rng, page(rng)) if rng.random() < 0.1 else page(rng)) for _ in range(rng.randint(1, 5))
        )
        if rng.random() < 0.3:
            data = gzip.compress(data)[: -rng.choice([1, 8, 20]) if rng.random() < 0.5 else None]
        path = tmp_path / rng.choice(["a.warc", "a.warc.gz"])
        path.write_bytes(data)
        assert use(seed, read_all, path) == "used", seed
        path.unlink()
    assert whole
    assert counted[BROKEN]


@pytest.mark.parametrize("piece", [piece[:2000] for piece in PIECES], ids=range(len(PIECES)))
def test_twice_the_page_takes_twice_the_time(piece: str) -> None:
    def seconds(count: int) -> float:
        html = (piece * (count * (20_000 // len(piece) + 1))).encode("utf-8", "replace")
        began = time.process_time()
        with suppress(BadSample):
            extract(html, "http://a.example/")
        return time.process_time() - began

    seconds(1)
    assert seconds(8) < 24 * max(seconds(1), 0.01)
