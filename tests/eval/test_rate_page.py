"""The page of ``kosmos eval rate``: in a real browser, and before requests that no person makes."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from kosmos_eval.rating import judgements
from kosmos_eval.rating.server import RatingServer
from kosmos_eval.rating.session import Session
from kosmos_eval.rating.texts import read_pairs

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
NAMES = ("zebrafish", "walnut")  # of the systems: words that nothing else on a page has
MARKUP = "<b>bold</b><script>document.title='taken'</script>"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Texts of two models about five pictures, and some markup in all that a file can say."""
    found = []
    for name, word in zip(NAMES, ("first", "second"), strict=True):
        records = [
            {"key": f"k{i}", "prompt": f"Tell of {i} {MARKUP}", "context": f"user: hello {MARKUP}", "image": f"{i}.png",
             "text": f"{word} text {i} {MARKUP}"}
            for i in range(5)
        ]  # fmt: skip
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        found.append(path)
    for i in range(5):
        Image.new("RGB", (40, 30), (50 * i, 80, 120)).save(tmp_path / f"{i}.png", pnginfo=None)
    return found[0], found[1]


@contextmanager
def command(*arguments: str, cwd: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command in a process of its own, and the address that it prints; it is ended by Ctrl-C if it still runs."""
    line = [sys.executable, "-m", "kosmos", "eval", "rate", *arguments]
    here = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [here, *(f"{here}/{name}" for name in ("data", "train", "eval")),
                                          os.environ.get("PYTHONPATH")]))  # fmt: skip
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=cwd, env=os.environ | {"PYTHONPATH": paths})
    assert process.stdout is not None
    try:
        shown = ""
        while (found := re.search(r"open (http://\S+)", shown)) is None:
            part = process.stdout.readline()
            assert part, shown
            shown += part
        yield process, found[1]
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


@pytest.fixture
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium here: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


def press(tab: Any, key: str, then: str) -> None:
    """Press a key and wait for the page that it leads to."""
    tab.keyboard.press(key)
    tab.wait_for_url(re.compile(then + "$"))


def chosen(tab: Any) -> list[str]:
    """The judgement that the page shows as made."""
    return tab.eval_on_selector_all("button[aria-pressed=true]", "found => found.map(one => one.value)")


@pytest.mark.slow
def test_a_person_judges_by_keyboard(files: tuple[Path, Path], browser: Any, tmp_path: Path) -> None:
    """Judge, go back and change, leave and come again, skip, finish; no page and no request names a system."""
    given = [*map(str, files), "--out", "r.jsonl", "--rater", "ann", "--question", "Which is better & why?"]
    seen: list[str] = []
    tab = browser.new_page()
    tab.set_default_timeout(60_000)
    tab.on("request", lambda request: seen.append(f"{request.url} {request.post_data}"))
    tab.on("response", lambda response: seen.append(str(response.headers)))

    def look() -> None:
        seen.append(tab.content())

    with command(*given, cwd=tmp_path) as (_, address):
        tab.goto(address)
        assert tab.title() == "Item 1 of 5 · which is better?"
        assert tab.inner_text("h1") == "Which is better & why?"
        assert tab.inner_text(".prompt p").endswith(MARKUP)
        assert {tab.inner_text(f"#{side} p").split()[0] for side in ("left", "right")} == {"first", "second"}
        assert tab.evaluate("[...document.images].map(one => one.complete && one.naturalWidth)") == [40]
        look()
        left = tab.inner_text("#left p")
        press(tab, "ArrowLeft", "/2")
        look()
        press(tab, "b", "/1")
        assert chosen(tab) == ["left"]
        press(tab, "ArrowRight", "/2")  # the later judgement counts
        press(tab, "t", "/3")
        press(tab, "S", "/4")
        assert tab.get_attribute("progress", "value") == "3"
        tab.keyboard.press("?")
        assert tab.locator("dl").is_visible()
        tab.keyboard.press("Control+ArrowLeft")  # a key of the browser's own
        tab.keyboard.press("Shift+?")
    with command(*given, cwd=tmp_path) as (process, address):
        tab.goto(address)
        tab.wait_for_url(re.compile("/4$"))  # it goes on where it was
        press(tab, "ArrowLeft", "/5")
        tab.click("button[value=tie]")
        tab.wait_for_url(re.compile("/done$"))
        look()
        assert "5 items judged (2 ties, 1 skipped)" in tab.inner_text("main")
        tab.click("text=Look at the first one that was skipped")
        assert chosen(tab) == ["skip"]
        press(tab, "ArrowRight", "/done")
        press(tab, "Backspace", "/5")
        press(tab, "t", "/done")
        tab.click("text=Finish")
        tab.wait_for_selector("text=The result is in the terminal")
        look()
        shown = process.communicate(timeout=60)[0]
        assert process.returncode == 0
    assert not any(name in text for name in NAMES for text in seen)
    assert len(seen) > 30
    made = judgements.read(tmp_path / "r.jsonl")
    assert [one.judgement for one in made] == ["left", "right", "tie", "skip", "left", "tie", "right", "tie"]
    system = {"first": NAMES[0], "second": NAMES[1]}[left.split()[0]]
    assert made[0].winner == made[0].left == system
    assert made[1].winner == made[1].right != system
    assert "5 of 5 judged, kept in r.jsonl" in shown
    assert f"win rate of {NAMES[0]}" in shown


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it(scheme: Any, files: tuple[Path, Path], browser: Any, tmp_path: Path) -> None:
    """No sideways scrolling at 360 pixels, all buttons on the screen and large enough, readable in both schemes."""
    tab = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme=scheme, java_script_enabled=True)
    with served(Session(read_pairs(*files), "ann", tmp_path / "r.jsonl", 0, "Which?")) as server:
        tab.goto(server.address)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 360
        for box in (one.bounding_box() for one in tab.locator(".choices button").all()):
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 360
            assert box["y"] + box["height"] <= 740
            assert box["height"] >= 44
        left, right = (tab.locator(f"#{side}").bounding_box() for side in ("left", "right"))
        assert left["y"] + left["height"] <= right["y"]  # one above the other
        for place in ("#left p", "h1", ".prompt p", "nav a, nav summary", "button[value=tie]", "header p"):
            assert tab.locator(place).first.evaluate(CONTRAST) >= 4.5, place
        assert tab.evaluate("[...document.querySelectorAll('button, a, img')].every(one => one.innerText || one.alt)")


CONTRAST = """(element) => {
    const parts = (color) => color.match(/[\\d.]+/g).map(Number);
    let behind = element;
    const clear = (one) => parts(getComputedStyle(one).backgroundColor)[3] === 0;
    while (behind.parentElement && clear(behind)) behind = behind.parentElement;
    const light = (color) => parts(color).slice(0, 3)
        .map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const colors = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor];
    const two = colors.map(light).sort((a, b) => a - b);
    return (two[1] + 0.05) / (two[0] + 0.05);
}"""
"""The contrast of a text with what is behind it (WCAG 2.2)."""


@pytest.mark.slow
def test_the_page_works_without_its_script(files: tuple[Path, Path], browser: Any, tmp_path: Path) -> None:
    tab = browser.new_page(java_script_enabled=False)
    with served(Session(read_pairs(*files), "ann", tmp_path / "r.jsonl", 0, "Which?")) as server:
        tab.goto(server.address)
        tab.click("button[value=left]")
        tab.wait_for_url(re.compile("/2$"))
        assert server.session.judged(0) == "left"


@contextmanager
def served(session: Session) -> Iterator[RatingServer]:
    """The pages from a thread of this process."""
    with RatingServer(session) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server(files: tuple[Path, Path], tmp_path: Path) -> Iterator[RatingServer]:
    with served(Session(read_pairs(*files), "ann", tmp_path / "r.jsonl", 0, "Which?")) as server:
        yield server


def request(server: RatingServer, method: str, path: str, body: str | None = None, **headers: str) -> tuple[int, bytes]:
    """Ask as anything on this machine may; ``host`` and ``origin`` are the right ones unless they are given."""
    port = server.server_port
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    given = {"Host": f"127.0.0.1:{port}", "Origin": f"http://127.0.0.1:{port}"} | headers
    connection.request(method, path, body, {name: value for name, value in given.items() if value})
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def test_only_who_knows_the_address_is_let_in(server: RatingServer, tmp_path: Path) -> None:
    base = urlsplit(server.address).path
    assert request(server, "GET", f"{base}1")[0] == 200
    assert request(server, "GET", f"{base}1", Host=f"localhost:{server.server_port}")[0] == 200
    for path in ("/", "/1", f"{base[:-2]}/1", f"/x{base}1", base[:-1], "/favicon.ico", "*"):
        assert request(server, "GET", path)[0] == 404, path
    for host in ("evil.example", f"evil.example:{server.server_port}", "127.0.0.1", "127.0.0.1:1"):
        assert request(server, "GET", f"{base}1", Host=host)[0] == 421, host
    judge = f"{base}1", "judgement=left"
    evil = ["", "null", "https://evil.example", "http://127.0.0.1:1", f"http://evil.example:{server.server_port}"]
    for origin in evil:
        assert request(server, "POST", *judge, Origin=origin)[0] == 403, origin
        assert request(server, "POST", f"{base}finish", Origin=origin)[0] == 403, origin
    assert request(server, "POST", "/1", "judgement=left")[0] == 404
    assert not (tmp_path / "r.jsonl").exists()
    assert request(server, "POST", *judge)[0] == 303
    assert len(judgements.read(tmp_path / "r.jsonl")) == 1


def test_nothing_but_the_pictures_is_read(server: RatingServer, files: tuple[Path, Path]) -> None:
    base = urlsplit(server.address).path
    status, content = request(server, "GET", f"{base}1/1")
    assert status == 200
    assert content.startswith(b"\x89PNG")
    strange = ["6", "0", "-1", "01x", "²", "1/0", "1/2", "1/x", "1/1/1", "page.py", "../page.py", "%2e%2e/page.css",
               "done/x", "page.css/1", "zebrafish.jsonl", "1/../../zebrafish.jsonl", "9" * 5000, str(files[0]),
               "//etc/passwd"]  # fmt: skip
    for path in strange:
        assert request(server, "GET", base + path.replace("²", "%C2%B2"))[0] in (404, 414), path
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE"):
        assert request(server, method, f"{base}1")[0] == 501


def test_strange_judgements_are_refused(server: RatingServer, tmp_path: Path) -> None:
    base = urlsplit(server.address).path
    for body in ("", "judgement=", "judgement=best", "judgement=zebrafish", "x=left", "judgement=left" + "x" * 2000):
        assert request(server, "POST", f"{base}1", body)[0] == 400, body[:40]
    for path in ("0", "6", "x", "1/1", ""):
        assert request(server, "POST", base + path, "judgement=left")[0] == 400, path
    assert not (tmp_path / "r.jsonl").exists()


def test_a_judgement_that_cannot_be_kept_is_said(server: RatingServer, tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").mkdir()
    base = urlsplit(server.address).path
    status, content = request(server, "POST", f"{base}1", "judgement=left")
    assert status == 507
    assert b"was not kept (Is a directory)" in content
    assert server.session.judged(0) is None


def test_a_page_allows_no_script_but_its_own(server: RatingServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.request("GET", urlsplit(server.address).path + "1", headers={"Host": server.hosts[0]})
    answer = connection.getresponse()
    body = answer.read().decode()
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert answer.headers["Cache-Control"] == "no-store"
    assert re.findall("<script[^>]*>", body) == ['<script src="page.js" defer>']
    assert "&lt;script&gt;" in body
    connection.close()
