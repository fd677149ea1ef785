"""``kosmos chat``: the command line of the conversation, and which door it opens.

:class:`Conversation` (conversation.py) is the chat itself, terminal.py what a person types in a terminal.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .conversation import Conversation
from .pictures import open_picture
from .terminal import COMMANDS, Terminal, print_answer


def main(argv: Sequence[str]) -> int:
    """``kosmos chat CHECKPOINT [--image FILE …] [--ask QUESTION]``."""
    parser = argparse.ArgumentParser(
        prog="kosmos chat",
        description="Ask a model about images. Without --ask, questions are read line by line.",
        epilog="While chatting:\n" + "\n".join(COMMANDS.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", help="checkpoint folder or run directory, e.g. runs/demo")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="an image; may be given again")
    parser.add_argument("--ask", metavar="QUESTION", help="ask this, print the answer and end")
    parser.add_argument("--system", help="text in front of the conversation")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="longest answer in tokens (64)")
    parser.add_argument("--temperature", type=float, default=0.0, help="sample with this temperature; 0: greedy")
    arguments = parser.parse_args(list(argv))
    if arguments.temperature < 0:
        raise ValueError(f"--temperature {arguments.temperature}: 0 is greedy, above it the answer is drawn")
    if arguments.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens {arguments.max_new_tokens}: an answer has at least one token")
    images = [open_picture(Path(path).expanduser()) for path in arguments.image]
    sampling = {"do_sample": True, "temperature": arguments.temperature} if arguments.temperature > 0 else {}
    chat = Conversation(
        arguments.checkpoint, system=arguments.system, max_new_tokens=arguments.max_new_tokens, **sampling
    )
    if arguments.ask is not None:
        print_answer(chat, arguments.ask, images)
        return 0
    return Terminal(chat, images).run()
