"""Class 6 of hostile inputs: addresses that lead to private machines or nowhere, and what servers answer."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from kosmos_data.web.http.fetch import FETCHED, FetchOptions, fetch
from kosmos_data.web.http.robots import Robots

SEEDS = int(os.environ.get("KOSMOS_SEEDS", "96")) // 8
SCHEMES = [
    "http",
    "https",
    "HTTP",
    "file",
    "ftp",
    "gopher",
    "javascript",
    "data",
    "",
    "unix",
    "http+unix",
    "ws",
    " http",
    "http\t",
]
HOSTS = [
    "127.0.0.1",
    "localhost",
    "0.0.0.0",
    "169.254.169.254",
    "10.0.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "127.1",
    "127.0.0.1.",
    "[fe80::1%25lo]",
    "[::]",
    "①②⑦.⓪.⓪.①",
    "localhost.",
    "LOCALHOST",
    "a" * 300,
    "x." * 200 + "y",
    "-",
    "..",
    "[",
    "[]",
    "\0",
    "a b",
    "xn--",
    "ü.invalid",
    "[v1.x]",
    "metadata.google.internal",
    "127.0.0.1\\@example.invalid",
    "example.invalid#@127.0.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "[ff02::1]",
]
USERS = ["", "", "", "user:secret@", "a@b@", ":@", "127.0.0.1@"]
PORTS = ["", "", ":80", ":0", ":-1", ":99999", ":22", ":x", ":" + "9" * 5000, ":8080:80"]
PATHS = [
    "/",
    "/a.png",
    "/../../etc/passwd",
    "/" + "a" * 10**5,
    "/%00",
    "/\r\nX: y",
    "?x=" + "y" * 1000,
    "#\0",
    "/\ud800",
    "//a",
    "/%zz",
]


def address(rng: random.Random) -> str:
    between = rng.choice(["://", "://", "://", ":", ":/", ""])
    parts = (SCHEMES, [between], USERS, HOSTS, PORTS, PATHS)
    return "".join(rng.choice(part) for part in parts)


def test_no_address_leads_to_a_connection(
    tmp_path: Path, use: Callable[..., str], allow: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is counted with a reason, nothing is fetched, and no file is written but the table."""
    for name in ("http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    allow("socket.getaddrinfo")  # a name is looked up; a connection would be a violation
    options = FetchOptions(attempts=1, timeout=2, max_wait=0, backoff=0)
    for seed in range(0, SEEDS, 8):
        rng = random.Random(f"address {seed}")
        given = [address(rng) for _ in range(8)]
        counts: dict[str, int] = {}
        out = tmp_path / f"out{seed}"
        line = use((seed, given), lambda given=given, out=out, counts=counts: counts.update(fetch(given, out, options)))
        assert line == "used", (given, line)
        assert sum(counts.values()) == len(set(given)), given
        assert FETCHED not in counts, given
        assert len(list(out.iterdir())) <= 3, given  # the table


def test_robots(use: Callable[..., str]) -> None:
    """Rules of strangers: any bytes, any length, stars by the thousand."""
    pieces = [
        "User-agent: *\n",
        "Disallow: /\n",
        "Allow: " + "*a" * 500 + "$\n",
        "Disallow: " + "*" * 2000 + "x\n",
        "Crawl-delay: 1e999\n",
    ]
    pieces += [
        "Crawl-delay: -5\n",
        "Crawl-delay: nan\n",
        "\0\n",
        "\ufeff",
        "Sitemap: x\n" * 1000,
        "User-agent: " + "k" * 10**5 + "\n",
        "#" * 10**5,
    ]
    pieces += [
        "Disallow: /%zz%\n",
        "Disallow: \ud800\n",
        "User-agent\n",
        ":\n" * 1000,
        "Disallow: /" + "a*" * 1000 + "\r",
    ]
    for seed in range(SEEDS):
        rng = random.Random(f"robots {seed}")
        text = "".join(rng.choice(pieces) for _ in range(rng.randint(1, 30)))
        path = rng.choice(["/", "/" + "a" * 5000, "/%41%", "/?" + "*" * 1000, ""])
        assert use(seed, lambda text=text, path=path: ask(text, path)) == "used", seed


def ask(text: str, path: str) -> None:
    """Whatever the rules are, they have an answer, and a delay that ends."""
    received = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")  # as the client reads what was sent
    found = Robots.parse(received, "kosmos-data")
    assert found.allows(f"http://a.example{path}") in (True, False)
    assert 0 <= found.delay < float("inf")
