"""``kosmos eval``: evaluate a checkpoint, score prediction files, compare and report results."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

_DESCRIPTION = """\
kosmos eval CHECKPOINT --tasks easy_vqa --shots 0,4 --context image+text,shuffled --data DIR   evaluate a checkpoint
kosmos eval score --predictions P.json --references R.json --metrics cider,bleu                 score files, no model
"""


def main(argv: Sequence[str]) -> int:
    """Dispatch on the first word; without a known one, it is a checkpoint to evaluate."""
    verbs = {"score": _score}
    if argv and argv[0] in verbs:
        return verbs[argv[0]](argv[1:])
    raise ValueError(_DESCRIPTION)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _score(argv: Sequence[str]) -> int:
    from .score import score_files

    parser = argparse.ArgumentParser(prog="kosmos eval score", description="Score published-format files; prints JSON.")
    parser.add_argument(
        "--predictions", type=Path, required=True, help="[{image_id, caption}] or [{question_id, answer}]"
    )
    parser.add_argument("--references", type=Path, required=True, help="COCO caption or VQAv2 annotation file")
    parser.add_argument("--questions", type=Path, help="VQAv2 question file, checked against the annotations")
    parser.add_argument(
        "--metrics", type=_names, default=[], help="comma-separated; default vqa, or bleu,rouge_l,cider"
    )
    parser.add_argument("--partial", action="store_true", help="VQA: score only the questions that have a prediction")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap intervals")
    options = parser.parse_args(argv)
    report = score_files(
        options.predictions, options.references, options.questions, options.metrics, options.partial, options.seed
    )
    json.dump(report, sys.stdout, indent=2)
    sys.stdout.write("\n")
    return 0
