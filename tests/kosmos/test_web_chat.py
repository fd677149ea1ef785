"""The page of ``kosmos chat --web`` in a real browser: pictures, answers that grow, buttons, two checkpoints."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from PIL import Image

from kosmos import Conversation

from .. import warm_libraries

if importlib.util.find_spec("gradio") is None:  # to import it takes four seconds, and only the server needs it
    pytest.skip("gradio is not installed", allow_module_level=True)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
QUESTION = "what is <image> & <b>it</b>?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, processor, speaker) -> Path:
    """Two checkpoints, the second with other weights, and two pictures."""
    path = tmp_path_factory.mktemp("web")
    processor.example_questions = ["what is the red thing?"]
    for seed, name in ((24, "one"), (1, "two")):  # the first repeats a word to the end
        speaker(seed).save_pretrained(path / name)
        processor.save_pretrained(path / name)
    processor.example_questions = []
    for colour in ("red", "blue"):
        Image.new("RGB", (60, 40), colour).save(path / f"{colour}.png")
    return path


def shows(page, place: str, count: int) -> None:
    """Wait until the page has so many elements there: what an answer shows may be drawn a moment after its words."""
    page.wait_for_function("([place, n]) => document.querySelectorAll(place).length == n", arg=[place, count])


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[tuple[BaseProcess, str]]:
    """The process that serves the page, with both checkpoints, and where the page is."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["-m", "kosmos", "chat", str(folder / "one"), "--beside", str(folder / "two"), "--web"]
    command += ["--port", str(port), "--max-new-tokens", "12"]
    process = warm_libraries.start(command, folder, {**os.environ, "GRADIO_ANALYTICS_ENABLED": "0"})
    try:
        end = time.monotonic() + 300
        while "Running on" not in (folder / "stdout").read_text():
            assert process.is_alive(), (folder / "stderr").read_text()
            assert time.monotonic() < end, (folder / "stderr").read_text()
            time.sleep(0.2)
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.join(30)
        process.kill()


@pytest.fixture
def address(server: tuple[BaseProcess, str]) -> str:
    """Where the page is."""
    return server[1]


@contextlib.contextmanager
def slowly(process: BaseProcess) -> Iterator[None]:
    """Let a process run for moments only: a tiny model's answer would be whole before a busy browser has drawn any."""
    over = threading.Event()

    def halt() -> None:
        while not over.wait(0.005):
            os.kill(process.pid, signal.SIGSTOP)
            time.sleep(0.1)
            os.kill(process.pid, signal.SIGCONT)

    thread = threading.Thread(target=halt)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture
def page(address: str) -> Iterator:
    """A tab of a headless Chromium on the page."""
    if CHROMIUM is None:
        pytest.skip("no chromium here: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        tab = browser.new_page(viewport={"width": 1100, "height": 900})
        tab.set_default_timeout(90_000)
        foreign: list[str] = []
        tab.on("request", lambda request: foreign.append(request.url) if not _own(request.url, address) else None)
        tab.goto(address)
        tab.wait_for_selector("#question textarea")
        yield tab
        assert foreign == []  # nothing is asked of the web
        browser.close()


def _own(url: str, address: str) -> bool:
    return url.startswith((address, "data:", "blob:"))


def texts(tab, number: int) -> list[str]:
    """What the messages of a chatbot say, questions and answers; a picture says nothing."""
    said = ", ".join(f"#answers-{number} [data-testid={role}]" for role in ("user", "bot"))
    found = tab.locator(said).all_inner_texts()
    return [text.strip() for text in found if text.strip()]


def ask(tab, question: str, *pictures: Path) -> None:
    if pictures:
        tab.set_input_files("#question input[type=file]", [str(path) for path in pictures])
        tab.wait_for_function(
            "count => document.querySelectorAll('#question .thumbnail-item').length == count", arg=len(pictures)
        )
    tab.fill("#question textarea", question)
    tab.press("#question textarea", "Enter")


def answered(tab, turns: int) -> None:
    """Wait until all turns are answered and the box is free again."""
    tab.wait_for_function(
        """turns => [0, 1].every(n => {
            const said = document.querySelectorAll(`#answers-${n} [data-testid=bot]`);
            return said.length == turns && [...said].every(one => one.innerText.trim() != '…');
        }) && !document.querySelector('#question textarea').disabled""",
        arg=turns,
    )


@pytest.mark.slow
def test_a_visit(page, folder: Path) -> None:
    red, blue = folder / "red.png", folder / "blue.png"
    assert page.get_by_text("what is the red thing?").count() >= 1  # what it was trained on
    ask(page, QUESTION, red)
    answered(page, 1)
    expected = [Conversation(folder / name, max_new_tokens=12) for name in ("one", "two")]
    for number, chat in enumerate(expected):
        said = chat.ask(QUESTION, red).strip()
        shown = texts(page, number)
        assert shown[0] == QUESTION
        assert shown[1].split() == said.split()
        shows(page, f"#answers-{number} [data-testid=user] img", 1)
    ask(page, "and now?", blue, red)
    answered(page, 2)
    for number, chat in enumerate(expected):
        said = chat.ask("and now?", [blue, red]).strip()
        assert texts(page, number)[-1].split() == said.split()
        shows(page, f"#answers-{number} [data-testid=user] img", 3)
    before = texts(page, 0)
    page.evaluate(
        """() => { window.begun = false; new MutationObserver(() => {
            const said = [...document.querySelectorAll('#answers-1 [data-testid=bot]')];
            window.begun ||= said.length == 2 && said[1].innerText.trim() == '…';
        }).observe(document.body, {subtree: true, childList: true, characterData: true}); }"""
    )
    page.click("#again")
    page.wait_for_function("window.begun")
    answered(page, 2)
    assert texts(page, 0) == before  # greedy
    page.get_by_text("Exact prompt").click()
    prompts = page.input_value("#prompt textarea")
    assert prompts == "\n\n".join(chat.prompt() for chat in expected)
    page.click("#export")
    with page.expect_download() as download:
        page.locator("#file a").first.click()
    written = json.loads(Path(download.value.path()).read_text())
    assert [one["prompt"] for one in written] == [chat.prompt() for chat in expected]
    assert page.locator("button[aria-label=Share]:visible, button[title=Share]:visible").count() == 0
    page.click("#edit")
    page.wait_for_function("document.querySelector('#question textarea').value == 'and now?'")
    shows(page, "#question .thumbnail-item", 2)
    answered(page, 1)
    page.click("#clear")
    page.wait_for_function("document.querySelectorAll('#answers-0 [data-testid=bot]').length == 0")
    assert page.input_value("#question textarea") == ""
    ask(page, "   ")
    page.wait_for_selector("text=the question is empty")
    ask(page, "why? " * 200)
    page.wait_for_selector("text=the model takes 256")
    page.wait_for_function("!document.querySelector('#question textarea').disabled")


@pytest.mark.slow
def test_an_answer_grows_and_can_be_stopped(page, folder: Path, server: tuple[BaseProcess, str]) -> None:
    """A long answer is seen before it is whole, and the button ends it.

    It is not drawn: a drawn one could end at once. The first model's likeliest answer is one word, over and over.
    """
    page.locator("input[type=number]").nth(1).fill("256")
    page.locator("input[type=number]").nth(1).press("Tab")
    page.evaluate(
        """() => { window.lengths = []; new MutationObserver(() => {
            const said = document.querySelector('#answers-0 [data-testid=bot]');
            if (said) window.lengths.push(said.innerText.length);
        }).observe(document.body, {subtree: true, childList: true, characterData: true}); }"""
    )
    with slowly(server[0]):
        ask(page, "what is it?", folder / "red.png")
        page.wait_for_function("new Set(window.lengths).size > 3")
        page.click("#stop")
    page.wait_for_function("!document.querySelector('#question textarea').disabled")
    stopped = texts(page, 0), texts(page, 1)  # the first may have ended before the click, and the second begun
    page.wait_for_timeout(1000)
    assert (texts(page, 0), texts(page, 1)) == stopped  # nothing more is written
    ask(page, "and now?")
    page.wait_for_function("document.querySelectorAll('#answers-0 [data-testid=bot]').length == 2")


def test_who_lets_others_in_sets_a_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kosmos.web_chat import show

    monkeypatch.delenv("KOSMOS_API_KEY", raising=False)
    with pytest.raises(ValueError, match="KOSMOS_API_KEY"):
        show([], host="0.0.0.0")


def test_a_page_in_a_notebook(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``conversation.show()`` comes back at once, and the page is there."""
    import urllib.request

    import gradio

    monkeypatch.setattr(gradio.networking, "url_ok", lambda url: False)  # as on a machine that is busy for seconds
    opened: list[gradio.Blocks] = []
    launch = gradio.Blocks.launch
    monkeypatch.setattr(gradio.Blocks, "launch", lambda self, **options: opened.append(self) or launch(self, **options))
    Conversation(folder / "one", max_new_tokens=2).show()
    (blocks,) = opened
    try:
        assert '"elem_id":"question"' in urllib.request.urlopen(f"{blocks.local_url}config", timeout=60).read().decode()
    finally:
        blocks.close()
