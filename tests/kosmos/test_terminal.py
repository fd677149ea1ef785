"""The chat in a terminal: commands, paths as people type them, and a real pty with keys pressed in it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from kosmos import Conversation
from kosmos.chat import main
from kosmos.terminal import Terminal, completions, paths_in, printable, stoppable, until_heard

RED = Image.new("RGB", (40, 30), "red")


@pytest.fixture
def terminal(model, processor) -> Terminal:
    return Terminal(Conversation(model, processor, max_new_tokens=2))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with pictures whose names are odd; also the working directory."""
    odd = os.fsdecode(b"b\xffd [red].png")
    for name in ("red.png", "my photo.png", "it's.png", odd):
        RED.save(tmp_path / name, "PNG")
    (tmp_path / "other folder").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_paths_as_people_give_them(folder: Path) -> None:
    photo = folder / "my photo.png"
    for text in (
        f'"{photo}"',
        f"'{photo}'",
        str(photo),
        f"{photo}".replace(" ", "\\ "),
        f"file://{folder}/my%20photo.png",
    ):
        assert paths_in(text) == [photo], text
    assert paths_in("~/red.png 'my photo.png' ~/my\\ photo.png") == [folder / "red.png", Path("my photo.png"), photo]
    assert paths_in("it's.png") == [Path("it's.png")]
    assert paths_in("~nobody-here/a.png") == [Path("~nobody-here/a.png")]
    with pytest.raises(ValueError, match="nothing is fetched"):
        paths_in("https://example.org/a.png")


def test_completions_are_lines_that_mean_the_file(folder: Path) -> None:
    assert completions("/im") == ["/image "]
    shown, others = ("/image", "/audio", "/video", "/fused"), ("/again", "/adapter", "/new", "/prompt", "/save")
    assert completions("/") == [f"{name} " for name in (*shown, *others, "/help", "/quit")]
    assert completions("what") == completions("what is /im") == []
    for line in (
        "/image my",
        "/image my\\ ph",
        '/image "my ph',
        "/image 'my",
        f"/image {folder}/my",
        "/image ~/my",
        "/image red.png my",
    ):
        (whole,) = completions(line)
        assert paths_in(whole.removeprefix("/image "))[-1].is_file(), line
    assert completions("/image oth") == ["/image other\\ folder/"]
    assert completions("/image no/such/folder/x") == []
    for line in ("~/my", f"{folder}/my", f"'{folder}/my", "~/red.png ~/my"):
        (whole,) = completions(line)
        assert paths_in(whole)[-1].is_file(), line
    assert completions("/again my") == completions("/image ~nobody-here/a") == completions("~nobody-here/a") == []


def test_commands(terminal: Terminal, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(line: str) -> str:
        terminal.take(line)
        return capsys.readouterr().out

    terminal.greet()
    greeting = capsys.readouterr().out
    assert "parameters on cpu" in greeting
    assert "There is no picture yet" in greeting
    assert "no picture was shown yet" in said("what is it?")
    assert "no picture was shown yet" not in said("what is it?")
    assert "red.png, 40×30 pixels" in said("/image ~/red.png")
    shown = said("/image 'my photo.png' no.png b*.png")
    assert "my photo.png, 40×30" in shown
    assert "no.png: no such image" in shown
    odd = next(path for path in folder.iterdir() if "[red]" in path.name)
    assert "b\ufffdd [red].png, 40×30" in said(f"/image {shlex.quote(str(odd))}")
    assert "my photo.png, 40×30" in said(f"'{folder}/my photo.png'")  # dropped
    said("which is [/bold] larger?")
    assert len(terminal.chat.pictures()) == 4
    said("/again")
    assert len(terminal.chat.messages) == 6
    assert "Question: which is [/bold] larger? Answer:" in said("/prompt")
    assert "written to chat [1].json" in said("/save 'chat [1].json'")
    assert len(json.loads((folder / "chat [1].json").read_text())["messages"]) == 6
    assert "/again" in said("/help")
    assert "new conversation" in said("/new")
    assert terminal.chat.messages == []
    refused = {
        "/imgae x": "unknown command '/imgae'; did you mean '/image'?",
        "/images": "did you mean '/image'",
        "/image": "name the picture",
        "/save": "name one file",
        "/again": "nothing was asked",
        "/etc/passwd": "cannot be read as an image",
    }
    for line, named in refused.items():
        if line == "/etc/passwd":
            assert named in said(line)
            continue
        with pytest.raises(ValueError, match=re.escape(named)):
            terminal.take(line)


def test_the_oldest_turns_are_forgotten_aloud(terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        terminal.take("what is it? " * 25)
    assert "(the context is used up: the oldest turn was forgotten)" in capsys.readouterr().out


class Interrupt:
    """A streamer that presses Ctrl-C at the 200th token."""

    tokens = 0

    def put(self, value: torch.Tensor) -> None:
        self.tokens += 1
        if self.tokens == 200:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    def end(self) -> None:
        pass


def test_a_stopped_answer_is_kept_with_its_picture(terminal: Terminal, folder: Path) -> None:
    options = {"do_sample": True, "min_new_tokens": 99_999, "max_new_tokens": 100_000, "streamer": Interrupt()}
    terminal.chat.generation = options
    terminal.take("/image red.png")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            terminal.take("what is it?")
    finally:
        signal.signal(signal.SIGINT, before)
    assert terminal.pictures == []
    assert len(terminal.chat.pictures()) == 1
    assert terminal.chat.messages[1]["content"][0]["text"]


def test_what_is_printed_moves_no_cursor() -> None:
    assert printable("a\x1b[2Jb\udcff\u202e") == "a\ufffd[2Jb\ufffd\ufffd"


def test_options_are_checked(folder: Path) -> None:
    for options, named in (("--temperature -1", "--temperature -1.0"), ("--max-new-tokens 0", "--max-new-tokens 0")):
        with pytest.raises(ValueError, match=named):
            main(["runs/none", *options.split()])


class Pty:
    """A program in a terminal of its own."""

    def __init__(self, command: list[str], **environment: str) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env={**os.environ, "TERM": "xterm", **environment},
            start_new_session=True, preexec_fn=_own_terminal,
        )  # fmt: skip
        os.close(slave)
        self.seen = ""

    def until(self, pattern: str, seconds: float = 300) -> str:
        """Read until the pattern stands in what is new; return that."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < end, f"no {pattern!r} in {self.seen!r}"
            ready = select.select([self.master], [], [], 1)[0]
            assert ready or self.process.poll() is None, f"ended without {pattern!r}: {self.seen!r}"
            if ready:
                self.seen += os.read(self.master, 65536).decode(errors="replace")
                self.seen = re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", self.seen)
        text, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return text

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def press_until(self, keys: str, pattern: str) -> str:
        """Press keys until they are heard: Ctrl-C between the prompt and the wait for keys is dropped by readline."""
        end = time.monotonic() + 300
        while time.monotonic() < end:
            self.press(keys)
            with contextlib.suppress(AssertionError):  # not heard, or ended: which of the two, the next line tells
                return self.until(pattern, 10)
            assert self.process.poll() is None, f"ended without {pattern!r}: {self.seen!r}"
        raise AssertionError(f"{keys!r} was pressed for five minutes, and no {pattern!r} came: {self.seen!r}")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        os.close(self.master)


def _own_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # what a background job of a script inherits is to ignore it


def test_a_stop_that_is_swallowed_still_stops() -> None:
    """Python drops an exception of a finaliser; here code that goes on after each takes its place."""

    def pieces():
        yield "red"
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        yield " circle"
        yield " and more"

    before = signal.getsignal(signal.SIGINT)
    seen: list[str] = []
    with pytest.raises(KeyboardInterrupt), stoppable() as heard:
        seen.extend(until_heard(heard, pieces()))
    assert seen == ["red", " circle"]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
def test_keys_in_a_real_terminal(model, processor, folder: Path) -> None:
    """The model writes 4,000 tokens, so that Ctrl-C comes in the middle."""
    pytest.importorskip("readline")
    model.generation_config.min_new_tokens = 3999
    processor.example_questions = ["what is it?"]
    checkpoint = folder / "run" / "checkpoints" / "step-000007"
    model.save_pretrained(checkpoint)
    processor.save_pretrained(checkpoint)
    processor.example_questions = []
    (checkpoint.parent / "latest").write_text("step-000007")
    chat = Pty(
        [sys.executable, "-m", "kosmos", "chat", "run", "--max-new-tokens", "4000", "--temperature", "1"],
        HOME=str(folder),
    )
    try:
        greeting = chat.until("you: ")
        assert "run/checkpoints/step-000007" in greeting
        assert "what is it?" in greeting
        chat.press("/image my\t\n")
        chat.until(r"my photo.png, 40×30 pixels")
        chat.until("you: ")
        chat.press("what is thxx\x7f\x7fis?\n")  # two letters taken back
        chat.until(r"is\?")
        chat.until(r"\w{2}")
        chat.press("\x03")
        chat.until(r"\(stopped\)")
        chat.until("you: ")
        chat.press_until("\x03", "ends the chat")
        chat.until("you: ")
        chat.press("\x1b[A\x1b[A\n")  # the line before the last of the history: the picture again
        chat.until("my photo.png, 40×30")
        chat.until("you: ")
        chat.press("/prompt\n")
        assert "Question: what is this? Answer:" in chat.until("Answer:")
        chat.until("you: ")
        chat.press("x" * 6000 + "\n")  # longer than a terminal's own line
        chat.until(r"6\d\d\d tokens|the model takes 256")
        chat.until("you: ")
        chat.press("\x04")
        assert chat.process.wait(60) == 0
    finally:
        chat.close()
