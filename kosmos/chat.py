"""``kosmos chat``: the command line of the conversation, and which door it opens.

:class:`Conversation` (conversation.py) is the chat itself, terminal.py what a person types in a terminal.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .conversation import Conversation, open_picture
from .terminal import converse, print_answer


def main(argv: Sequence[str]) -> int:
    """``kosmos chat CHECKPOINT [--image FILE …] [--ask QUESTION]``."""
    parser = argparse.ArgumentParser(
        prog="kosmos chat",
        description="Ask a model about images. Without --ask, questions are read line by line.",
        epilog="While chatting: /image FILE shows another image, /new starts over, /quit or Ctrl-D ends.",
    )
    parser.add_argument("checkpoint", help="checkpoint folder or run directory, e.g. runs/demo")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="an image; may be given again")
    parser.add_argument("--ask", metavar="QUESTION", help="ask this, print the answer and end")
    parser.add_argument("--system", help="text in front of the conversation")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="longest answer in tokens (64)")
    parser.add_argument("--temperature", type=float, default=0.0, help="sample with this temperature; 0: greedy")
    arguments = parser.parse_args(list(argv))
    images = [open_picture(path) for path in arguments.image]
    sampling = {"do_sample": True, "temperature": arguments.temperature} if arguments.temperature > 0 else {}
    chat = Conversation(
        arguments.checkpoint, system=arguments.system, max_new_tokens=arguments.max_new_tokens, **sampling
    )
    if arguments.ask:
        print_answer(chat, arguments.ask, images)
        return 0
    return converse(chat, images)
