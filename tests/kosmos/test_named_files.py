"""Files that a person names, at every door that opens them: an address, a folder, an empty file, a web page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kosmos import Conversation
from kosmos.cli import main
from kosmos.media import file_bytes
from kosmos.pictures import open_picture

NAMES = {
    "https://example.com/a.png": r"^https://example\.com/a\.png: an https: address is not opened; save the \w+ as",
    "s3://bucket/a.png": "an s3: address is not opened",
    "folder": "folder is a folder; name the (image|video) in it",
    "gone [1].png": r"gone \[1\]\.png: no such (image|video)$",
    "x" * 5000: "^x{80}…: no such (image|video)$",
    "nul\0.png": "no such",
}

Door = Callable[[str, Any], Any]
DOORS: dict[str, Door] = {
    "open_picture": lambda name, chat: open_picture(name),
    "Path": lambda name, chat: open_picture(Path(name)) if "://" not in name else open_picture(name),
    "Conversation": lambda name, chat: chat.ask("What?", images=[name]),
    "take": lambda name, chat: chat.take(Path(name)) if "://" not in name else chat.ask("What?", images=[name]),
    "file_bytes": lambda name, chat: file_bytes(name, "video"),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[:12].replace("\0", "0"))
def test_a_name_that_is_no_file_says_what_it_is(name: str, door: str, chat: Conversation) -> None:
    with pytest.raises(FileNotFoundError, match=NAMES[name]):
        DOORS[door](name, chat)


def test_a_file_of_an_odd_name_is_read(chat: Conversation) -> None:
    for name in ("http:", "data:x.png", "a 'b' \"c\" [d].png"):
        Image.new("RGB", (3, 2)).save(name, "PNG")
        assert open_picture(name).size == (3, 2)


@pytest.mark.parametrize(("content", "said"), [(b"", "it is empty"), (b"<html>404", "it begins with b'<html>404'")])
def test_a_file_that_is_no_picture_says_how_it_begins(content: bytes, said: str, chat: Conversation) -> None:
    Path("a.png").write_bytes(content)
    for given in ("a.png", Path("a.png"), content):
        with pytest.raises(ValueError, match="cannot be read as an image: ") as caught:
            open_picture(given)
        assert str(caught.value).endswith(said)
        assert str(caught.value).count("a.png") <= 1


@pytest.fixture
def run(speaker_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8), "red").save(name)
    return str(speaker_folder)


def test_several_pictures_of_one_option(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As a shell writes out *.png, before and behind the checkpoint."""
    words = ["--max-new-tokens", "2", "--ask", "what is it?"]
    said = []
    for images in (["--image", "a.png", "b.png"], ["--image", "a.png", "--image", "b.png"]):
        assert main(["chat", run, *images, *words]) == 0
        said.append(capsys.readouterr().out)
    assert main(["chat", "--image", "a.png", "b.png", run, *words]) == 0
    assert [capsys.readouterr().out] == said[:1] == said[1:]
    assert main(["chat", run, "--image", "a.png", "gone.png", *words]) == 2
    assert "gone.png: no such image" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["nan", "inf", "-1"])
def test_a_temperature_that_is_none(value: str, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", run, f"--temperature={value}", "--ask", "what?"]) == 2
    assert f"--temperature {float(value)}" in capsys.readouterr().err
