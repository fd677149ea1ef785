"""``kosmos eval rate A B``: a page on which a person compares two models' texts; ``--report``: who won."""

from __future__ import annotations

import argparse
import getpass
import json
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kosmos.plain import counted, pasted, printable

from ..where import add_which
from . import report
from .server import RatingServer
from .session import Session
from .texts import read_pairs

QUESTION = "Which text is better?"
_EPILOG = """\
examples:
  kosmos eval rate runs/a runs/b --task stories
  kosmos eval rate first=a.jsonl second=b.jsonl --images photos --rater ann
  kosmos eval rate --report ratings.jsonl

A file has one JSON object a line: "key" (or "id"), "text" (or "prediction")
and, where there are some, "prompt", "context", "image", "images".
"""


def main(argv: Sequence[str]) -> int:
    """Serve the page until it is finished or Ctrl-C, or print a report; exit code 0."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.report is not None:
        if options.texts:
            parser.error("--report takes files of ratings only, no texts")
        return _report(options.report, options.json)
    if len(options.texts) != 2:
        parser.error(f"two models' texts are compared, not {len(options.texts)}: kosmos eval rate A B")
    if options.json:
        parser.error("--json goes with --report")
    first, second = options.texts
    which = {name: getattr(options, name) for name in ("images", "seed", "limit", "task", "shots", "context")}
    pairs = read_pairs(first, second, **which)
    rater = printable(_user() if options.rater is None else options.rater).strip()
    session = Session(pairs, rater, options.out, options.seed, printable(options.question))
    names = [f"{system.name} ({system.fingerprint})" for system in pairs.systems]
    for line in (f"{' against '.join(names)}: {counted(len(pairs.pairs), 'item')}", *pairs.remarks):
        print(printable(line))
    return _serve(session, options.port)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kosmos eval rate",
        description="Compare two models' texts blind, on a page of this machine; each judgement is kept at once.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("texts", nargs="*", metavar="[NAME=]TEXTS", help="run folders, sample logs of kosmos eval, or JSON lines")
    add("--out", metavar="FILE", type=Path, default=Path("ratings.jsonl"), help="of the judgements (ratings.jsonl)")
    add("--rater", metavar="NAME", help="who judges (the user's name)")
    add("--question", default=QUESTION, help=f"what the page asks ({QUESTION!r})")
    add("--images", metavar="DIR", type=Path, help="folder of the images (the run's data, or beside the file)")
    add("--limit", metavar="N", type=int, help="items at most, drawn by the seed (all)")
    add("--seed", metavar="N", type=int, default=0, help="of what is drawn: items, their order, the sides (0)")
    add_which(parser)
    add("--port", metavar="N", type=int, default=0, help="of the page, on 127.0.0.1 (any that is free)")
    add("--report", metavar="FILE", type=Path, nargs="+", help="print who won, of one or several files of ratings")
    add("--json", action="store_true", help="the report as JSON")
    return parser


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError) as error:
        raise ValueError("the system says no name for this user; give one: --rater NAME") from error


@contextmanager
def _ended_by_interrupt(server: RatingServer) -> Iterator[None]:
    """Let Ctrl-C end the server by a call: an exception that comes while Python frees an object would be lost."""
    if threading.current_thread() is not threading.main_thread():  # only that one may
        yield
        return

    def end(*_: Any) -> None:
        threading.Thread(target=server.shutdown, daemon=True).start()

    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _serve(session: Session, port: int) -> int:
    with RatingServer(session, port) as server, _ended_by_interrupt(server):
        session.add_ties()
        if session.same:
            print(f"{counted(len(session.same), 'item')} with the same text from both: tied, not shown")
        print(f"{session.counts().total()} of {len(session.pairs)} judged by {session.rater} in {session.ratings}")
        print(f"open {server.address}  (Ctrl-C ends; what was judged is kept)", flush=True)
        server.serve_forever(poll_interval=0.1)
    if not server.is_finished:
        print()  # behind the terminal's ^C
    print(f"{session.counts().total()} of {len(session.pairs)} judged, kept in {session.ratings}")
    if server.is_finished:
        print("\n" + report.text(report.summary([session.ratings])))
    else:
        print(f"the same command goes on; kosmos eval rate --report {pasted(session.ratings)} says who won")
    return 0


def _report(paths: Sequence[Path], as_json: bool) -> int:
    found = report.summary(paths)
    shown = json.dumps(found, indent=2, ensure_ascii=False) if as_json else printable(report.text(found))
    sys.stdout.write(shown + "\n")
    return 0
