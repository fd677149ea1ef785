"""The chat in a terminal: what a person types, and what the conversation answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .conversation import Conversation, open_picture

if TYPE_CHECKING:
    from PIL.Image import Image


def converse(chat: Conversation, images: list[Image]) -> int:
    from rich.console import Console

    console = Console()
    console.print("Ask about the image; /image FILE, /new, /quit.", style="dim")
    while True:
        try:
            line = console.input("[bold]you:[/] ").strip()
        except (EOFError, KeyboardInterrupt):
            return 0
        command, _, rest = line.partition(" ")
        try:
            if command in ("/quit", "/exit"):
                return 0
            if command == "/new":
                chat.reset()
                images = []
            elif command == "/image":
                images.append(open_picture(rest.strip()))
            elif line:
                print_answer(chat, line, images)
                images = []
        except (ValueError, OSError) as error:
            console.print(f"[red]{error}[/]")


def print_answer(chat: Conversation, question: str, images: list[Image]) -> None:
    for piece in chat.stream(question, images):
        print(piece, end="", flush=True)
    print()
