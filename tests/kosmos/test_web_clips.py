"""Clips on the page of ``kosmos chat --web``, in a real browser: dropped, asked about, played, taken back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kosmos import Conversation
from kosmos.segments import Video

from .test_video import film, pair  # noqa: F401 - a fixture
from .test_web_chat import CHROMIUM, FLAGS, shows

QUESTION = "what animal is it?"


@pytest.fixture
def chat(pair: Any) -> Conversation:  # noqa: F811
    """It writes letters only: an untrained model may have nothing to say."""
    model, processor = pair
    tokens = range(model.config.get_text_config().vocab_size)
    silent = [token for token in tokens if not processor.tokenizer.decode([token], skip_special_tokens=True).strip()]
    return Conversation(model, processor, max_new_tokens=4, eos_token_id=None, suppress_tokens=silent)


@pytest.fixture
def tab(chat: Conversation) -> Iterator[Any]:
    """A headless Chromium on the page of a model that sees pictures and videos."""
    if CHROMIUM is None:
        pytest.skip("no chromium here: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    from kosmos.web_chat import show

    served = show([chat], wait=False)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS, timeout=120_000)
        tab = browser.new_page(viewport={"width": 900, "height": 900})
        tab.set_default_timeout(240_000)
        tab.goto(served.local_url)
        tab.wait_for_selector("#question textarea")
        yield tab
        browser.close()
    served.close()


def answered(tab: Any, turns: int) -> str:
    """The last answer, once so many are there and the box is free."""
    tab.wait_for_function(
        """turns => {
            const said = document.querySelectorAll('#answers-0 [data-testid=bot]');
            return said.length == turns && [...said].every(one => one.innerText.trim() != '…')
                && !document.querySelector('#question textarea').disabled;
        }""",
        arg=turns,
    )
    return tab.locator("#answers-0 [data-testid=bot]").last.inner_text().strip()


@pytest.mark.slow
def test_a_clip_is_asked_about(tab: Any, chat: Conversation, tmp_path: Path) -> None:
    clip = tmp_path / "a dog.mp4"
    clip.write_bytes(film([10, 200]))
    expected = chat.fork().ask([Video(clip), QUESTION])
    assert expected.strip()
    assert "pictures or clips" in tab.get_attribute("#question textarea", "placeholder")
    tab.set_input_files("#question input[type=file]", [str(clip)])
    tab.wait_for_selector("#question .thumbnail-item")
    tab.fill("#question textarea", QUESTION)
    tab.press("#question textarea", "Enter")
    assert answered(tab, 1).split() == expected.split()
    shows(tab, "#answers-0 [data-testid=user] video", 1)
    tab.click("#export")
    with tab.expect_download() as download:
        tab.locator("#file a").first.click()
    written = json.loads(Path(download.value.path()).read_text())
    assert written["messages"][0]["content"][0]["video"]["data"].startswith("data:")
    tab.click("#edit")
    tab.wait_for_function("question => document.querySelector('#question textarea').value == question", arg=QUESTION)
    shows(tab, "#question .thumbnail-item", 1)
    tab.press("#question textarea", "Enter")
    assert answered(tab, 1).split() == expected.split()
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    tab.set_input_files("#question input[type=file]", [str(broken)])
    tab.wait_for_selector("#question .thumbnail-item")
    tab.fill("#question textarea", "and now?")
    tab.press("#question textarea", "Enter")
    tab.wait_for_selector("text=the video cannot be decoded")
    assert answered(tab, 1).split() == expected.split()


def test_a_page_shows_what_was_said_before_it(chat: Conversation, tmp_path: Path) -> None:
    """Clips of a conversation that has begun, and files of no clip are refused by what they are."""
    from kosmos.web_chat import Page

    clip = tmp_path / "dog.avi"
    clip.write_bytes(film([10, 200], container="avi"))
    chat.ask([Video(clip), QUESTION])
    page = Page([chat])
    ((shown, question, answer),) = page.histories([chat.messages])
    path = Path(shown["content"]["path"])
    assert path.read_bytes() == clip.read_bytes()
    assert (path.suffix, question["content"]) == (".mp4", QUESTION)
    assert answer["role"] == "assistant"
    (tmp_path / "B.GIF.AVI").write_bytes(film([90], container="avi"))
    given = page.taken(tmp_path / "B.GIF.AVI")
    assert page.files_of({"type": "video", "video": given})[0].endswith(".avi")
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(ValueError, match=r"notes\.txt"):
        page.taken(tmp_path / "notes.txt")
