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
from .segments import SEGMENTS, Fused
from .terminal import COMMANDS, FILES, Terminal, print_answer


def main(argv: Sequence[str]) -> int:
    """``kosmos chat CHECKPOINT [--image FILE …] [--ask QUESTION]``."""
    parser = argparse.ArgumentParser(
        prog="kosmos chat",
        description="Ask a model about images. Without --ask, questions are read line by line.",
        epilog="While chatting:\n" + "\n".join(COMMANDS.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", nargs="?", help="checkpoint folder, run directory (runs/demo) or name of the hub")
    parser.add_argument("--image", action="extend", nargs="+", default=[], metavar="FILE", help="one image or several")
    for kind in FILES:
        parser.add_argument(
            f"--{kind}",
            action="append",
            default=[],
            metavar="FILE",
            help=f"{kind} for a model that has an encoder of it",
        )
    parser.add_argument(
        "--fused",
        action="append",
        default=[],
        nargs=2,
        metavar=("FILE", "TEXT"),
        help="an image with a text for a model that has an encoder of both together",
    )
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="RUN",
        help="a tuning of the model; of several the first answers",
    )
    parser.add_argument("--ask", metavar="QUESTION", help="ask this, print the answer and end")
    parser.add_argument(
        "--grounding", action="store_true", help="answers say where in the picture things are, for a KOSMOS-2 model"
    )
    parser.add_argument("--system", help="text in front of the conversation")
    parser.add_argument("--persona", metavar="FILE", help='JSON that says who answers, {"city": "Rome", …}')
    parser.add_argument(
        "--alpha", type=float, help="how much the persona counts, 0 to 1, for a model with attention routing"
    )
    parser.add_argument("--max-new-tokens", type=int, default=64, help="longest answer in tokens (64)")
    extrapolation.add_argument(parser)
    parser.add_argument("--temperature", type=float, default=0.0, help="sample with this temperature; 0: greedy")
    parser.add_argument("--web", action="store_true", help="chat on a page in the browser")
    parser.add_argument("--beside", metavar="CHECKPOINT", help="with --web: another checkpoint, asked the same")
    parser.add_argument("--host", default="127.0.0.1", help="with --web: address to listen on (this machine only)")
    parser.add_argument("--port", type=int, help="with --web: port to listen on (the first free one from 7860)")
    arguments = parser.parse_args(list(argv))
    if arguments.checkpoint is None and arguments.image:  # --image a.png CHECKPOINT
        arguments.checkpoint = arguments.image.pop()
    if arguments.checkpoint is None:
        parser.error("the following arguments are required: checkpoint")
    if not math.isfinite(arguments.temperature) or arguments.temperature < 0:
        raise ValueError(f"--temperature {arguments.temperature}: 0 is greedy, above it the answer is drawn")
    if arguments.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens {arguments.max_new_tokens}: an answer has at least one token")
    images: list[Any] = [open_picture(os.path.expanduser(path)) for path in arguments.image]
    images += [SEGMENTS[kind](Path(path).expanduser()) for kind in FILES for path in getattr(arguments, kind)]
    images += [Fused(Path(path).expanduser(), words) for path, words in arguments.fused]
    sampling = {"do_sample": True, "temperature": arguments.temperature} if arguments.temperature > 0 else {}
    if arguments.beside and not arguments.web:
        raise ValueError("--beside shows two checkpoints on a page: add --web")
    persona = None if arguments.persona is None else read_persona(Path(arguments.persona).expanduser())
    names = ("system", "alpha", "max_new_tokens", "grounding", "extrapolate")
    shared = {name: getattr(arguments, name) for name in names}
    chats = [
        Conversation(path, adapter=adapters, persona=persona, **shared, **sampling)
        for path, adapters in ((arguments.checkpoint, arguments.adapter), (arguments.beside, ()))
        if path is not None
    ]
    if arguments.web:
        from .web_chat import show

        show(chats, arguments.host, arguments.port)
        return 0
    (chat,) = chats
    if arguments.ask is not None:
        print_answer(chat, arguments.ask, images)
        return 0
    return Terminal(chat, images).run()


def read_persona(path: Path) -> dict[str, Any]:
    """The persona that a JSON file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no JSON object.
    """
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such file; it holds a persona as JSON, {{"city": "Rome"}}')
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: a persona is an object of keys and texts, not a {type(found).__name__}")
    return found
