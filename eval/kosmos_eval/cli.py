"""``kosmos eval``: evaluate a checkpoint, score prediction files, compare and report results.

The first word decides: ``score``, ``report``, ``gallery``, ``compare``, ``contamination``, ``explanations``,
``personas``, ``rate``, ``tasks``, ``make``, ``documents``, ``lm-eval``; anything else is the checkpoint to evaluate.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kosmos_data.errors import BadSample

from .collection import none_searched, rarely_searched
from .commands import data, models, results
from .commands.words import names

_EPILOG = """\
examples:
  kosmos eval runs/demo/tune --tasks easy_vqa --data corpora/starter/eval \\
    --shots 0,4 --context image+text,shuffled
  kosmos eval CHECKPOINT --tasks vqa,caption --data MY_FOLDER \\
    --set dataset.images={split}/images/{image_id}.png

other uses, each with its own --help:
  kosmos eval tasks          what can be evaluated
  kosmos eval make           make data of the KOSMOS-1 suite
  kosmos eval documents      a task's training split as a corpus
  kosmos eval score          score prediction files, no model needed
  kosmos eval report         Markdown tables and a plot of runs
  kosmos eval gallery        a picture of questions and answers
  kosmos eval compare        paired difference of two models
  kosmos eval rate           a page on which people compare two models blind
  kosmos eval contamination  are test items in the training data?
  kosmos eval explanations   ratings and explanations from ids (PETER)
  kosmos eval personas       texts under the right, a wrong and no persona
  kosmos eval lm-eval        the text tasks of lm-eval
"""


def main(argv: Sequence[str]) -> int:
    """Run one of the uses; exit code 0."""
    try:
        return _use(argv)
    except BadSample as error:
        raise ValueError(f"{error}; evaluation skips nothing, kosmos data check lists all such samples") from error


def _use(argv: Sequence[str]) -> int:
    if argv and argv[0] in USES:
        return USES[argv[0]](argv[1:])
    near = difflib.get_close_matches(argv[0], USES, n=1) if argv and not Path(argv[0]).exists() else []
    if near and "--tasks" not in argv:
        raise ValueError(f"{argv[0]!r} is no checkpoint and no use of kosmos eval; did you mean {near[0]!r}?")
    return _evaluate(argv)


def _evaluate(argv: Sequence[str]) -> int:
    with none_searched(frozen=True):  # the libraries stay until the end
        options = _options(argv)
        from .evaluate import evaluate_checkpoint
    with rarely_searched():
        evaluate_checkpoint(**options)
    return 0


def _options(argv: Sequence[str]) -> dict[str, Any]:
    """What ``evaluate_checkpoint`` takes, from the command line."""
    from kosmos import extrapolation  # with transformers, for seconds that the other uses do without

    parser = argparse.ArgumentParser(
        prog="kosmos eval",
        description="Evaluate a checkpoint, with or without demonstrations;\nwrites results.json and every prompt.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="a checkpoint folder or a run directory")
    add("--adapter", metavar="RUN", help="a tuning of the checkpoint, which answers in its place")
    add(
        "--tasks",
        dest="names",
        metavar="A,B",
        type=names,
        required=True,
        help="names (kosmos eval tasks) or YAML files",
    )
    add("--data", metavar="DIR", type=Path, required=True, help="folder that the tasks' paths are relative to")
    add("--shots", metavar="K,K", type=_numbers, default=[0], help="numbers of demonstrations, e.g. 0,2,4,8 (0)")
    add(
        "--context", dest="contexts", metavar="C,C", type=names, default=["image+text"],
        help="what a prompt holds: image+text, shuffled (another item's image), text-only, none (image+text)",
    )  # fmt: skip
    add("--limit", metavar="N", type=int, help="evaluate so many items, always the same ones (all)")
    add("--few-shot-limit", metavar="N", type=int, help="the same for shots > 0 (--limit)")
    add("--out", metavar="DIR", type=Path, help="folder for results.json and samples/ (CHECKPOINT/eval)")
    add("--name", help="the model's name in the results (the checkpoint folder's)")
    add("--seed", metavar="N", type=int, default=0, help="of shuffled images, sampling and intervals (0)")
    add("--batch-size", dest="batch_rows", metavar="N", type=int, default=128, help="prompts in a batch at most (128)")
    extrapolation.add_argument(parser)
    add("--device", help="cpu, cuda, cuda:1 … (a GPU if there is one)")
    add(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
        help="change a key of the tasks' YAML, e.g. metrics=cider,bleu or decoding.method=beam; may be repeated",
    )  # fmt: skip
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        pairs = [word for word in unknown if re.fullmatch(r"[A-Za-z][\w.]*=.*", word, re.DOTALL)]
        hint = f"; keys of the tasks are changed by --set {pairs[0]}, the folder is --out DIR" if pairs else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return vars(given)


def _rate(argv: Sequence[str]) -> int:
    from .rating.command import main

    return main(argv)


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in names(text)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 0,2,4,8") from error


USES: dict[str, Callable[[Sequence[str]], int]] = {
    "score": results.score,
    "report": results.report,
    "gallery": results.gallery,
    "compare": results.compare,
    "rate": _rate,
    "tasks": data.tasks,
    "make": data.make,
    "documents": data.documents,
    "contamination": data.contamination,
    "explanations": models.explanations,
    "personas": models.personas,
    "lm-eval": models.lm_eval,
}
