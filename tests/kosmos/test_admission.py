"""Which pictures a request may show: what is fetched from the web and from files, and what never is."""

from __future__ import annotations

import http.server
import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from kosmos.admission import Admission

RED = Image.new("RGB", (40, 30), "red")


@pytest.fixture
def web() -> Iterator[str]:
    """A web server on this machine, as an attacker or a colleague has one."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/to/"):
                self.send_response(302)
                self.send_header("Location", self.path.removeprefix("/to/"))
                self.end_headers()
                return
            if self.path == "/endless":
                self.send_response(200)
                self.end_headers()
                try:
                    while True:
                        self.wfile.write(b"x" * 65536)
                except OSError:  # the client has seen enough
                    return
            self.send_response(200)
            self.end_headers()
            RED.save(self.wfile, "PNG")

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()


def test_only_what_is_allowed_is_fetched(web: str, tmp_path: Path) -> None:
    ours = Admission(urls=True, networks=(ipaddress.ip_network("127.0.0.1/32"),), max_bytes=1_000_000)
    assert ours.open(f"http://{web}/red.png").size == RED.size
    assert ours.open(f"http://{web}/to/http://{web}/red.png").size == RED.size
    port = web.rpartition(":")[2]
    public = Admission(urls=True)
    private = [
        f"http://{web}/red.png", f"http://localhost:{port}/", f"http://[::1]:{port}/", f"http://[::ffff:127.0.0.1]:{port}/",
        f"http://0x7f000001:{port}/", f"http://2130706433:{port}/", f"http://127.1:{port}/", "http://10.0.0.1/",
        "http://169.254.169.254/latest/meta-data", "http://192.168.0.1/", "http://172.16.0.1/", "http://100.64.0.1/",
        "http://0.0.0.0/", "http://[fe80::1]/", "http://[fd00::1]/", "http://[64:ff9b::7f00:1]/", "http://224.0.0.1/",
        "http://[2002:7f00:1::]/",
    ]  # fmt: skip
    for url in private:
        with pytest.raises(ValueError, match="may not fetch"):
            public.open(url)
    for target in ("http://127.0.0.2/", "http://10.0.0.1/", f"http://localhost.localdomain:{port}/x"):
        with pytest.raises(ValueError, match=r"may not fetch|no such host"):
            ours.open(f"http://{web}/to/{target}")
    with pytest.raises(ValueError, match="http and https only"):
        ours.open(f"http://{web}/to/file:///etc/passwd")
    with pytest.raises(ValueError, match="more than 3 redirects"):
        ours.open(f"http://{web}/to/" * 5 + f"http://{web}/")
    with pytest.raises(ValueError, match="longer than 1000000 bytes"):
        ours.open(f"http://{web}/endless")
    with pytest.raises(ValueError, match="not fetched"):
        Admission().open(f"http://{web}/red.png")
    with pytest.raises(ValueError, match="files are not read"):
        Admission().open("file:///etc/passwd")
    (tmp_path / "in").mkdir()
    RED.save(tmp_path / "red.png")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "red.png")
    with pytest.raises(ValueError, match="no file of the folder"):
        Admission(files=tmp_path / "in").open("link.png")


def test_a_server_that_only_drips_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time, in the head of the answer or in its body, and the answer never."""
    monkeypatch.setattr("kosmos.admission.SECONDS", 1.0)
    for head in (b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n"):
        done = threading.Event()
        server = socket.create_server(("127.0.0.1", 0))

        def drip(server: socket.socket = server, head: bytes = head, done: threading.Event = done) -> None:
            visitor, _ = server.accept()
            visitor.recv(4096)
            visitor.sendall(head)
            try:
                while not done.wait(0.1):
                    visitor.sendall(b"a")
            except OSError:  # it has left
                pass
            visitor.close()

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        ours = Admission(networks=(ipaddress.ip_network("127.0.0.1/32"),))
        begun = time.monotonic()
        with pytest.raises(ValueError, match="takes longer than 1 s"):
            ours.open(f"http://127.0.0.1:{server.getsockname()[1]}/red.png")
        assert time.monotonic() - begun < 30
        done.set()
        thread.join()
        server.close()


def test_a_name_that_leads_inside_is_not_followed(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One name with a public and a private address, and a name that changes its mind after it was looked at."""
    port = int(web.rpartition(":")[2])
    asked = []

    def lookup(host: str, *_: object, **__: object) -> list:
        asked.append(host)
        found = ["93.184.216.34", "127.0.0.1"] if host == "both.example" else ["127.0.0.1"]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    for host in ("both.example", "inside.example"):
        with pytest.raises(ValueError, match=r"is at 127\.0\.0\.1"):
            Admission(urls=True).open(f"http://{host}:{port}/")
    assert asked == ["both.example", "inside.example"]  # looked up once: what was checked is what is connected to
