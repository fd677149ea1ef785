"""The chat in a terminal: what a person types, and what the conversation answers.

A line is a question, a command (``COMMANDS``), or the paths of pictures, as dropping files on a terminal gives them.
Ctrl-C ends an answer and not the chat. Names and answers are shown as text, whatever they hold.
"""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from PIL.Image import Image

from .conversation import Conversation
from .plain import printable
from .segments import Fused, modality_name
from .suggest import suggest

FILES = ("audio", "video")
"""Modalities beside images of which a person has files."""
COMMANDS = {
    "/image": "/image FILE …   show one or more pictures with the next question; dropping files does the same",
    "/audio": "/audio FILE …   the same with sounds, for a model that hears",
    "/video": "/video FILE …   the same with videos",
    "/fused": "/fused FILE TEXT show a picture with a text that one encoder reads together, for a model that has one",
    "/again": "/again          ask the last question again",
    "/adapter": "/adapter [NAME] answer with another adapter, or with the model as it was",
    "/new": "/new            forget all turns and pictures",
    "/prompt": "/prompt         print what the model reads",
    "/save": "/save FILE      write the conversation: .html to look at, otherwise JSON",
    "/help": "/help           this list",
    "/quit": "/quit           end, as Ctrl-D does",
}


class Terminal:
    """A person at a terminal and a conversation.

    Args:
        chat: who answers.
        pictures: shown with the first question; sounds may be among them, as segments.
    """

    def __init__(self, chat: Conversation, pictures: list[Any] | None = None) -> None:
        from rich.console import Console

        self.chat = chat
        self.pictures = list(pictures or [])
        self.console = Console(emoji=False, highlight=False)
        self.told_blind = False

    def run(self) -> int:
        """Read lines until the person leaves; return the exit code."""
        _accept_any_text()
        complete_with_readline()
        self.greet()
        while True:
            try:
                line = input(self._asking()).strip()
            except EOFError:
                self.tell("")
                return 0
            except KeyboardInterrupt:
                self.tell("\n/quit or Ctrl-D ends the chat.")
                continue
            try:
                if line.partition(" ")[0] in ("/quit", "/exit"):
                    return 0
                if line:
                    self.take(line)
            except KeyboardInterrupt:
                self.tell("\n(stopped)")
            except (ValueError, OSError) as error:
                self.tell(str(error), style="red")

    def greet(self) -> None:
        """Say who speaks, and what may be asked."""
        folder = self.chat.checkpoint
        size = sum(parameter.numel() for parameter in self.chat.model.parameters())
        name = f"{folder}, " if folder else ""
        self.tell(f"{name}{size:,} parameters on {self.chat.model.device}. /help lists the commands.")
        if examples := self.chat.processor.example_questions:
            self.tell("It was trained on questions such as: " + " · ".join(examples))
        if not self.pictures and self.chat.model.config.vision_config is not None:
            self.tell("There is no picture yet: /image FILE shows one.")

    def take(self, line: str) -> None:
        """Do what a line says.

        Raises:
            ValueError: an unknown command, or what a command or the conversation refuses.
        """
        command, _, rest = line.partition(" ")
        dropped = _existing(line)
        if dropped:
            self.show(dropped)
        elif command == "/image":
            self.show(paths_in(rest))
        elif command[1:] in FILES:
            self.show(paths_in(rest), command[1:])
        elif command == "/fused":
            self.show_with_text(rest)
        elif command == "/new":
            self.chat.reset()
            self.pictures = []
            self.tell("A new conversation, without pictures.")
        elif command == "/adapter":
            self.chat.use(rest.strip() or None)
            self.tell(f"{rest.strip() or 'the model without an adapter'} answers from now on.")
        elif command == "/again":
            self.answer(self.chat.take_back())
        elif command == "/prompt":
            self.tell(self.chat.prompt(), style="")
        elif command == "/save":
            self.save(rest)
        elif command == "/help":
            self.tell("\n".join(COMMANDS.values()))
        elif line.startswith("/"):
            raise ValueError(f"unknown command {command!r}; {suggest(command, COMMANDS)}")
        else:
            self.ask(line)

    def show(self, paths: list[Path], kind: str | None = None) -> None:
        """Take files for the next question and say what they are; those that cannot be read are named.

        Args:
            kind: one of ``FILES``; None: pictures, but what the chat's model reads otherwise, by the file's name.
        """
        if not paths:
            raise ValueError(f"/{kind or 'image'} FILE: name the {kind or 'picture'} to show")
        for path in paths:
            try:
                taken = self.chat.take(path, kind)
            except (ValueError, OSError) as error:
                self.tell(str(error), style="red")
                continue
            self.pictures.append(taken)
            what = f"{taken.width}×{taken.height} pixels" if isinstance(taken, Image) else modality_name(taken)
            self.tell(f"{path.name}, {what}, goes with the next question.")

    def show_with_text(self, rest: str) -> None:
        """Take a picture and the text beside it for the next question."""
        try:
            words = shlex.split(rest)
        except ValueError:  # an apostrophe in the text
            words = rest.split()
        if len(words) < 2:
            raise ValueError("/fused FILE TEXT: name the picture, then the text that is read with it")
        path = _path(words[0])
        self.pictures.append(self.chat.readable(Fused(path, " ".join(words[1:]))))
        self.tell(f"{path.name}, with its text, goes with the next question.")

    def ask(self, question: str) -> None:
        """Put a question about the pictures that were shown since the last."""
        sees = self.chat.model.config.vision_config is not None
        if sees and not self.pictures and not self.chat.pictures() and not self.told_blind:
            self.tell("(no picture was shown yet, the answer is a guess)")
            self.told_blind = True
        parts = self.chat.question(printable(question), self.pictures)
        try:
            self.answer(parts)
        finally:  # a stopped answer is kept, and its pictures with it
            if any(message["content"] is parts for message in self.chat.messages):
                self.pictures = []

    def answer(self, parts: list[dict[str, Any]]) -> None:
        """Print the answer as it is written."""
        forgotten = self.chat.forgotten
        pieces = self.chat.stream_parts(parts, forget=True)
        try:
            with stoppable() as heard:
                print_pieces(until_heard(heard, pieces))
            print_boxes(self.chat)
        finally:
            if dropped := self.chat.forgotten - forgotten:
                turns = f"the {dropped} oldest turns were" if dropped > 1 else "the oldest turn was"
                self.tell(f"(the context is used up: {turns} forgotten)")

    def save(self, name: str) -> None:
        """Write the conversation to the file of this name."""
        paths = paths_in(name)
        if len(paths) != 1:
            raise ValueError("/save FILE: name one file, for instance chat.html")
        self.chat.save(paths[0])
        self.tell(f"written to {paths[0]}")

    def tell(self, text: str, style: str = "dim") -> None:
        """Print a line of ours; no markup in it counts, and it is not broken where the window ends."""
        self.console.print(printable(text), style=style, markup=False, soft_wrap=True)

    def _asking(self) -> str:
        """The prompt; readline must be told which of its characters take no room."""
        if not self.console.is_terminal or self.console.no_color or "readline" not in sys.modules:
            return "you: "
        return "\001\033[1m\002you:\001\033[0m\002 "


@contextmanager
def stoppable() -> Iterator[threading.Event]:
    """Let Ctrl-C raise KeyboardInterrupt and be remembered in the event that this returns.

    Where it falls into a finaliser, or into code that goes on after every exception, Python drops it, and the answer
    would be written to its end.
    """
    heard = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only that one hears signals
        yield heard
        return

    def hear(number: int, frame: Any) -> None:
        heard.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, hear)
    try:
        yield heard
    finally:
        signal.signal(signal.SIGINT, before)


def until_heard(heard: threading.Event, pieces: Iterator[str]) -> Iterator[str]:
    """Yield the pieces of an answer; KeyboardInterrupt behind the one during which Ctrl-C was heard."""
    for piece in pieces:
        yield piece
        if heard.is_set():
            raise KeyboardInterrupt


def print_answer(chat: Conversation, question: str, pictures: list[Any]) -> None:
    """Print the answer to one question."""
    _accept_any_text()
    print_pieces(chat.stream(printable(question), pictures))
    print_boxes(chat)


def print_pieces(pieces: Iterator[str]) -> None:
    """Print an answer as it is written."""
    for piece in pieces:
        print(printable(piece), end="", flush=True)
    print()


def print_boxes(chat: Conversation) -> None:
    """Print what the last answer points at: phrase, then left, top, right and bottom edge of each box, from 0 to 1."""
    for part in chat.messages[-1]["content"] if chat.messages else ():
        for entry in part.get("boxes", ()) if isinstance(part, dict) else ():
            begin, end = entry["phrase"]
            boxes = "; ".join(" ".join(f"{edge:.2f}" for edge in box) for box in entry["boxes"])
            print(f"  {printable(part['text'][begin:end])}: {boxes}")


def paths_in(text: str) -> list[Path]:
    """The paths that were typed or dropped: with ``~``, quotes, backslashes, ``file://``, several; or one with spaces.

    Raises:
        ValueError: an address on the web.
    """
    if (whole := _path(text.strip())).is_file():
        return [whole]
    try:
        return [_path(word) for word in shlex.split(text)]
    except ValueError:  # a quote that is not closed belongs to the name
        return [whole]


def _path(word: str) -> Path:
    parts = urlsplit(word) if "://" in word else None
    if parts and parts.scheme == "file":
        return Path(unquote(parts.path))
    if parts and parts.scheme in ("http", "https"):
        raise ValueError(f"{word}: nothing is fetched from the web; save the picture and give its path")
    try:
        return Path(word).expanduser()
    except RuntimeError:  # ~ of a user that does not exist
        return Path(word)


def _existing(line: str) -> list[Path]:
    """The files that the whole line names by paths, as dropping them gives it; none if any word is something else."""
    if not line.startswith(("/", "~", "'", '"', "file://")):
        return []
    try:
        paths = paths_in(line)
        return paths if all(path.is_file() for path in paths) else []
    except (ValueError, OSError):  # too long for a name
        return []


def completions(line: str) -> list[str]:
    """Whole lines that ``line`` may become: commands, and paths behind ``/image`` and ``/save`` or by themselves."""
    command, space, rest = line.partition(" ")
    named = [f"{name} " for name in COMMANDS if not space and line.startswith("/") and name.startswith(line)]
    if named:
        return named
    if not (command in ("/image", "/save", "/fused") or command[1:] in FILES):
        if command in COMMANDS or not line.startswith(("/", "~", "'", '"')):
            return []
        command, space, rest = "", "", line  # files as they are dropped on a terminal
    start, quote = _last_word(rest)
    word = rest[start + len(quote) :]
    typed = word if quote else word.replace("\\ ", " ")
    folder, _, beginning = typed.rpartition("/")
    try:
        where = Path(f"{folder}/" if folder or typed.startswith("/") else ".").expanduser()
        names = sorted(path.name + "/" * path.is_dir() for path in where.iterdir() if path.name.startswith(beginning))
    except (OSError, RuntimeError):  # no such folder, no such user
        return []
    before = line[: len(command + space) + start] + quote + (f"{folder}/" if "/" in typed else "")
    if quote:
        return [before + name + (quote if name[-1] != "/" else "") for name in names if quote not in name]
    return [before + "".join(f"\\{letter}" if letter in " '\"\\" else letter for letter in name) for name in names]


def _last_word(text: str) -> tuple[int, str]:
    """Where the last word of a line begins, and the quote that it opens."""
    start, quote, at = 0, "", 0
    while at < len(text):
        letter = text[at]
        if quote:
            quote = "" if letter == quote else quote
        elif letter == "\\":
            at += 1
        elif letter == " ":
            start = at + 1
        elif letter in "'\"" and at == start:
            quote = letter
        at += 1
    return start, quote


def complete_with_readline() -> None:
    """Give ``input()`` line editing, a history and completion, where Python has readline."""
    try:
        import readline
    except ImportError:  # Windows
        return
    readline.set_completer(lambda line, state: dict(enumerate(completions(line))).get(state))
    readline.set_completer_delims("")  # a completion is a whole line
    libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")


def _accept_any_text() -> None:
    """Keep odd bytes of names as they are, and print what the terminal has no letter for as a question mark."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace")):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=errors)
