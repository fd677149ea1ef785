"""``kosmos chat``: the command line of the conversation, and which door it opens.

:class:`Conversation` (conversation.py) is the chat itself, terminal.py what a person types in a terminal.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import extrapolation
from .conversation import Conversation
from .pictures import open_picture
from .read_json import read_utf8
from .segments import SEGMENTS, Fused
from .terminal import COMMANDS, FILES, Terminal, print_answer


def main(argv: Sequence[str]) -> int:
    """``kosmos chat CHECKPOINT [--image FILE …] [--ask QUESTION]``."""
    arguments = _read_arguments(argv)
    images = _read_inputs(arguments)
    chats = _open_chats(arguments)
    if arguments.web:
        from .web_chat import show

        show(chats, arguments.host, arguments.port)
        return 0
    (chat,) = chats
    if arguments.ask is not None:
        print_answer(chat, arguments.ask, images)
        return 0
    return Terminal(chat, images).run()


def _read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="kosmos chat",
        description="Ask a model about images. Without --ask, questions are read line by line.",
        epilog="While chatting:\n" + "\n".join(COMMANDS.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", nargs="?", help="checkpoint folder, run directory (runs/demo) or name of the hub")
    _add_inputs(parser)
    _add_answering(parser)
    _add_page(parser)
    arguments = parser.parse_args(list(argv))
    if arguments.checkpoint is None and arguments.image:  # --image a.png CHECKPOINT
        arguments.checkpoint = arguments.image.pop()
    if arguments.checkpoint is None:
        parser.error("the following arguments are required: checkpoint")
    _check(arguments)
    return arguments


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    """Options of what is asked, and what goes with it."""
    add = parser.add_argument
    add("--image", action="extend", nargs="+", default=[], metavar="FILE", help="one image or several")
    for kind in FILES:
        what = f"{kind} for a model that has an encoder of it"
        add(f"--{kind}", action="append", default=[], metavar="FILE", help=what)
    what = "an image with a text for a model that has an encoder of both together"
    add("--fused", action="append", default=[], nargs=2, metavar=("FILE", "TEXT"), help=what)
    what = "a tuning of the model; of several the first answers"
    add("--adapter", action="append", default=[], metavar="RUN", help=what)
    add("--ask", metavar="QUESTION", help="ask this, print the answer and end")


def _add_answering(parser: argparse.ArgumentParser) -> None:
    """Options of who answers, and how."""
    add = parser.add_argument
    what = "answers say where in the picture things are, for a KOSMOS-2 model"
    add("--grounding", action="store_true", help=what)
    add("--system", help="text in front of the conversation")
    add("--persona", metavar="FILE", help='JSON that says who answers, {"city": "Rome", …}')
    what = "how much the persona counts, 0 to 1, for a model with attention routing"
    add("--alpha", type=float, help=what)
    add("--max-new-tokens", type=int, default=64, help="longest answer in tokens (64)")
    extrapolation.add_argument(parser)
    add("--temperature", type=float, default=0.0, help="sample with this temperature; 0: greedy")


def _add_page(parser: argparse.ArgumentParser) -> None:
    """Options of the page in a browser."""
    add = parser.add_argument
    add("--web", action="store_true", help="chat on a page in the browser")
    add("--beside", metavar="CHECKPOINT", help="with --web: another checkpoint, asked the same")
    add("--host", default="127.0.0.1", help="with --web: address to listen on (this machine only)")
    add("--port", type=int, help="with --web: port to listen on (the first free one from 7860)")


def _check(arguments: argparse.Namespace) -> None:
    if not math.isfinite(arguments.temperature) or arguments.temperature < 0:
        raise ValueError(f"--temperature {arguments.temperature}: 0 is greedy, above it the answer is drawn")
    if arguments.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens {arguments.max_new_tokens}: an answer has at least one token")
    if arguments.beside and not arguments.web:
        raise ValueError("--beside shows two checkpoints on a page: add --web")


def _read_inputs(arguments: argparse.Namespace) -> list[Any]:
    """The pictures and other files that go with the first question."""
    inputs: list[Any] = [open_picture(os.path.expanduser(path)) for path in arguments.image]
    inputs += [SEGMENTS[kind](Path(path).expanduser()) for kind in FILES for path in getattr(arguments, kind)]
    return inputs + [Fused(Path(path).expanduser(), words) for path, words in arguments.fused]


def _open_chats(arguments: argparse.Namespace) -> list[Conversation]:
    """A conversation with the checkpoint, and one with that beside it if there is one."""
    sampling = {"do_sample": True, "temperature": arguments.temperature} if arguments.temperature > 0 else {}
    persona = None if arguments.persona is None else read_persona(Path(arguments.persona).expanduser())
    names = ("system", "alpha", "max_new_tokens", "grounding", "extrapolate")
    shared = {name: getattr(arguments, name) for name in names}
    return [
        Conversation(path, adapter=adapters, persona=persona, **shared, **sampling)
        for path, adapters in ((arguments.checkpoint, arguments.adapter), (arguments.beside, ()))
        if path is not None
    ]


def read_persona(path: Path) -> dict[str, Any]:
    """The persona that a JSON file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no JSON object.
    """
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such file; it holds a persona as JSON, {{"city": "Rome"}}')
    text = read_utf8(path)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: a persona is an object of keys and texts, not a {type(found).__name__}")
    return found
