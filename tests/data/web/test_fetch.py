"""The fetcher against a server that misbehaves in every way it knows, and against its own death."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
from PIL import Image as Pictures

pytest.importorskip("httpx")

from kosmos_data.errors import IMAGE_TOO_LARGE
from kosmos_data.web.http import fetch as fetching
from kosmos_data.web.http import polite_http, safe_http
from kosmos_data.web.http.fetch import FetchOptions, fetch, read_list
from kosmos_data.web.http.fetch_table import FetchTable
from kosmos_data.web.page import url_name

OPTIONS = FetchOptions(timeout=2.0, backoff=0.01, max_wait=0.5, max_bytes=50_000, allow_private=True)
CERTIFICATE = Path(__file__).parents[2] / "fixtures" / "data" / "self_signed.pem"


def picture() -> bytes:
    buffer = io.BytesIO()
    Pictures.new("RGB", (8, 6), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def pixel_bomb() -> bytes:
    """A PNG whose header promises 60,000 × 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + picture()[33:]


MOVED = {
    "loop": (302, "/loop/again"),
    "inward": (302, "http://10.255.255.1/metadata"),
    "elsewhere": (301, "ftp://example.org/a.png"),
    "moved": (308, "image/moved"),
    "to-secret": (302, "/secret/a"),
}


class Server:
    """Answers by path, in a thread of its own; counts what it was asked for.

    ``mood`` changes between runs: ``bad`` paths are healed by ``good``.
    """

    def __init__(self, tls: bool = False) -> None:
        self.asked: Counter[str] = Counter()
        self.open = self.most_open = 0
        self.robots = b"User-agent: *\nDisallow: /secret\n"
        self.robots_status = 200
        self.mood = "bad"
        self.tls = tls
        self.loop = asyncio.new_event_loop()
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        assert self.ready.wait(30)

    def url(self, path: str) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}{path}"

    def _run(self) -> None:
        context = None
        if self.tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(CERTIFICATE)
        self.loop.set_exception_handler(lambda *_: None)  # clients that hang up are what it is for
        server = self.loop.run_until_complete(asyncio.start_server(self._client, "127.0.0.1", 0, ssl=context))
        self.port = server.sockets[0].getsockname()[1]
        self.ready.set()
        self.loop.run_forever()
        server.close()

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split(b" ")[1].decode()
        self.asked[path] += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await self._answer(path, writer)
            await writer.drain()
        except ConnectionError:
            return  # the client has seen enough
        finally:
            self.open -= 1
            writer.close()

    async def _answer(self, path: str, writer: asyncio.StreamWriter) -> None:
        image, healed = picture(), self.mood == "good"
        match path.split("/")[1:]:
            case ["robots.txt"]:
                self._send(writer, self.robots, status=self.robots_status)
            case ["slow"] if not healed:  # never idle for long, never done
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                for _ in range(100):
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(0.1)
            case ["missing"] if not healed:
                self._send(writer, b"no", status=404)
            case ["moody"]:
                self._send(writer, image, status=200 if self.asked[path] > 1 else 503)
            case ["busy"]:
                headers = f"Retry-After: {formatdate(time.time() + 1, usegmt=True)}\r\n" if "2" in path else ""
                self._send(writer, image, status=429 if self.asked[path] == 1 else 200, headers=headers)
            case ["patience"]:
                self._send(writer, b"", status=503, headers="Retry-After: 3600\r\n")
            case [name, *_] if name in MOVED:
                status, place = MOVED[name]
                self._send(writer, b"", status=status, headers=f"Location: {place}\r\n")
            case ["html"]:
                self._send(writer, b"<html>not a picture</html>", headers="Content-Type: image/png\r\n")
            case ["disguised"]:
                self._send(writer, image, headers="Content-Type: text/html\r\n")
            case ["bomb"]:
                self._send(writer, pixel_bomb())
            case ["zipbomb"]:
                self._send(writer, gzip.compress(bytes(30_000_000)), headers="Content-Encoding: gzip\r\n")
            case ["zipped"]:
                self._send(writer, gzip.compress(image), headers="Content-Encoding: gzip\r\n")
            case ["brotli"]:
                self._send(writer, image, headers="Content-Encoding: br\r\n")
            case ["large"]:  # says so
                self._send(writer, bytes(100_000))
            case ["endless"]:  # says nothing
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
                for _ in range(1000):
                    writer.write(bytes(1000))
                    await writer.drain()
            case ["reset"] if not healed:
                writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(image)}\r\n\r\n".encode() + image[:20])
                await writer.drain()
                writer.transport.abort()
            case ["garbage"]:
                writer.write(b"\x00\x01 what is HTTP?\r\n\r\n")
            case ["noai"]:
                self._send(writer, image, headers="X-Robots-Tag: otherbot: noindex, noimageai\r\n")
            case ["image", *_] | ["slow"] | ["missing"] | ["reset"]:
                await asyncio.sleep(0.02)
                self._send(writer, image)
            case _:
                self._send(writer, b"", status=404)

    def _send(self, writer: asyncio.StreamWriter, body: bytes, status: int = 200, headers: str = "") -> None:
        head = f"HTTP/1.1 {status} X\r\n{headers}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


def table(folder: Path, url: str) -> fetching.Outcome:
    with FetchTable(folder) as rows:
        outcome = rows.outcome(url)
    assert outcome is not None
    return outcome


MISBEHAVIOUR = {
    "/image/1": "fetched",
    "/moved": "fetched",
    "/disguised": "fetched",
    "/zipped": "fetched",
    "/moody": "fetched",
    "/busy": "fetched",
    "/slow": polite_http.TIMED_OUT,
    "/missing": "status 404",
    "/patience": "status 503",
    "/loop/0": polite_http.REDIRECTS,
    "/elsewhere": polite_http.BAD_URL,
    "/to-secret": polite_http.ROBOTS,
    "/secret/a": polite_http.ROBOTS,
    "/html": fetching.NOT_AN_IMAGE,
    "/bomb": IMAGE_TOO_LARGE,
    "/zipbomb": safe_http.TOO_LARGE,
    "/brotli": safe_http.ENCODED,
    "/large": safe_http.TOO_LARGE,
    "/endless": safe_http.TOO_LARGE,
    "/reset": polite_http.CUT_OFF,
    "/garbage": polite_http.CUT_OFF,
    "/noai": polite_http.OPTED_OUT,
}


def test_each_misbehaviour_is_counted_and_only_failures_are_tried_again(server: Server, tmp_path: Path) -> None:
    urls = {server.url(path): reason for path, reason in MISBEHAVIOUR.items()}
    counts = fetch(urls, tmp_path, OPTIONS)
    found = {path: table(tmp_path, server.url(path)).reason for path in MISBEHAVIOUR}
    assert found == MISBEHAVIOUR
    assert counts == Counter(MISBEHAVIOUR.values())
    fetched = [url for url, reason in urls.items() if reason == "fetched"]
    assert {path.name for path in tmp_path.iterdir() if path.suffix == ""} == {url_name(url) for url in fetched}
    for url in fetched:
        row, data = table(tmp_path, url), (tmp_path / url_name(url)).read_bytes()
        assert data == picture()
        assert (row.status, row.bytes, row.sha256) == (200, len(data), hashlib.sha256(data).hexdigest())
    assert not any(path.startswith("/secret") for path in server.asked)
    assert server.asked["/robots.txt"] == 1
    assert server.asked["/moody"] == 2
    assert server.asked["/reset"] == server.asked["/slow"] == OPTIONS.attempts
    assert server.asked["/missing"] == server.asked["/patience"] == 1  # not temporary; an hour is too long to wait

    server.mood = "good"
    server.asked.clear()
    counts = fetch(urls, tmp_path, OPTIONS)
    healed = {"/slow", "/missing", "/reset"}
    assert counts["fetched"] == len(fetched) + len(healed)
    again = {path for path, reason in MISBEHAVIOUR.items() if reason != "fetched"}
    assert set(server.asked) - {"/robots.txt", "/loop/again"} == again - {"/secret/a"}
    assert table(tmp_path, server.url("/reset")).attempts == OPTIONS.attempts + 1


def test_private_addresses_are_refused_wherever_they_appear(server: Server, tmp_path: Path) -> None:
    closed = FetchOptions(timeout=5.0, backoff=0.01, attempts=1)
    direct = [server.url("/image/1"), f"http://localhost:{server.port}/image/1", "http://[::1]/", "http://0x7f000001/"]
    assert fetch(direct, tmp_path / "a", closed) == {safe_http.PRIVATE: 4}
    assert not server.asked


def test_a_redirect_to_a_private_address_is_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server counts as public here; where it redirects to does not."""
    own = safe_http.is_public
    monkeypatch.setattr(safe_http, "is_public", lambda address: address == "127.0.0.1" or own(address))
    closed = FetchOptions(timeout=5.0, attempts=1)
    assert fetch([server.url("/inward"), server.url("/image/1")], tmp_path, closed) == {
        safe_http.PRIVATE: 1,
        "fetched": 1,
    }


def test_a_name_that_changes_its_address_after_the_check_is_not_followed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the first answer is public, every later one is the local server."""
    answers = iter([["203.0.113.7"], *[["127.0.0.1"]] * 9])
    connected: list[str] = []

    async def resolve(host: str, port: int, timeout: float | None = None) -> list[str]:
        return next(answers)

    async def connect(self: object, host: str, *arguments: object, **options: object) -> None:
        connected.append(host)
        raise safe_http.httpcore.ConnectError("nobody there")

    monkeypatch.setattr(safe_http, "resolve", resolve)
    monkeypatch.setattr(safe_http.httpcore.AnyIOBackend, "connect_tcp", connect)
    monkeypatch.setattr(safe_http, "is_public", lambda address: address == "203.0.113.7")
    counts = fetch([f"http://rebind.example:{server.port}/image/1"], tmp_path, FetchOptions(attempts=2, backoff=0.01))
    assert connected == ["203.0.113.7"]
    assert counts == {safe_http.PRIVATE: 1}


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        *[(ip, False) for ip in ("127.0.0.1", "10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "0.0.0.0")],
        *[(ip, False) for ip in ("100.64.0.1", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1%eth0", "fd00::1")],
        *[(ip, False) for ip in ("::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "ff02::1")],
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert safe_http.is_public(address) == public


def test_tls_is_verified(tmp_path: Path) -> None:
    server = Server(tls=True)
    assert fetch([server.url("/image/1")], tmp_path, OPTIONS) == {polite_http.NO_TLS: 1}
    assert "certificate" in table(tmp_path, server.url("/image/1")).detail.lower()
    server.close()


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (404, b"", "fetched"),  # RFC 9309: no robots.txt, no restriction
        (500, b"", "status 500"),  # cannot be read: wait
        (200, b"User-agent: *\nDisallow: /\n\nUser-agent: kosmos-data\nAllow: /\n", "fetched"),
        (200, b"User-agent: Kosmos-Data\nDisallow: /image\n", polite_http.ROBOTS),
        (200, b"\xff\xfe\x00" * 300_000, polite_http.ROBOTS),
    ],
)
def test_robots(server: Server, tmp_path: Path, status: int, body: bytes, reason: str) -> None:
    server.robots_status, server.robots = status, body
    assert fetch([server.url("/image/1")], tmp_path, OPTIONS) == {reason: 1}


def test_a_host_is_asked_few_things_at_a_time(server: Server, tmp_path: Path) -> None:
    urls = [server.url(f"/image/{number}") for number in range(30)]
    options = FetchOptions(per_host=3, concurrency=20, allow_private=True)
    assert fetch([*urls, *urls], tmp_path, options) == {"fetched": 30}
    assert server.most_open == 3
    assert max(server.asked.values()) == 1


def test_crawl_delay_spaces_the_requests(server: Server, tmp_path: Path) -> None:
    server.robots = b"User-agent: *\nCrawl-delay: 1\n"
    start = time.monotonic()
    options = FetchOptions(max_wait=0.15, allow_private=True)
    fetch([server.url(f"/image/{number}") for number in range(4)], tmp_path, options)
    assert time.monotonic() - start > 3 * 0.15


def test_a_dead_host_is_given_up(tmp_path: Path) -> None:
    with socket.socket() as holder:  # bound but not listening: connections are refused, and nobody takes the port
        holder.bind(("127.0.0.1", 0))
        urls = [f"http://127.0.0.1:{holder.getsockname()[1]}/{number}" for number in range(20)]
        counts = fetch(urls, tmp_path, OPTIONS)
    assert counts[polite_http.HOST_DOWN] > 10
    assert counts[polite_http.NO_CONNECTION] + counts[polite_http.HOST_DOWN] == 20


def test_strange_addresses_are_counted(tmp_path: Path) -> None:
    strange = ["ftp://example.org/a", "http://", "http://[bad/", "http://a:99999/", "javascript:1", "http://\x00/", ""]
    counts = fetch(strange, tmp_path, OPTIONS)
    assert counts.pop(polite_http.BAD_URL) >= 5
    assert set(counts) <= {safe_http.NO_ADDRESS}


def test_killed_in_the_middle_it_goes_on(server: Server, tmp_path: Path) -> None:
    urls = [server.url(f"/image/{number}") for number in range(60)]
    (tmp_path / "urls.txt").write_text("# pictures\n\n" + "\n".join(urls))
    program = (
        "from kosmos_data.web.http.fetch import *\n"
        f"fetch(read_list({str(tmp_path / 'urls.txt')!r}), {str(tmp_path / 'out')!r}, FetchOptions(allow_private=True))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", program], env=environment)
    while server.asked.total() < 20 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = {path for path, count in server.asked.items() if count}
    assert fetch(read_list(tmp_path / "urls.txt"), tmp_path / "out", OPTIONS) == {"fetched": 60}
    assert all((tmp_path / "out" / url_name(url)).read_bytes() == picture() for url in urls)
    twice = [path for path, count in server.asked.items() if count > 1 and path != "/robots.txt"]
    assert len(before) > 10
    assert len(twice) <= FetchOptions().per_host  # only what was on its way when it died


def test_a_file_that_is_no_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "fetch.sqlite").write_text("this is not a database, but long enough to look at" * 50)
    with pytest.raises(ValueError, match=r"fetch\.sqlite"):
        fetch(["http://example.org/"], tmp_path)


def test_the_command_says_what_became_of_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from kosmos_data.cli import main

    (tmp_path / "urls.txt").write_text("http://127.0.0.1/a.png\nhttp://10.0.0.1/b.png\nmailto:me\n")
    assert main(["fetch", str(tmp_path / "urls.txt"), "--out", str(tmp_path / "out"), "--user-agent", "lab/1"]) == 0
    said = capsys.readouterr().out
    assert safe_http.PRIVATE in said
    assert polite_http.BAD_URL in said
