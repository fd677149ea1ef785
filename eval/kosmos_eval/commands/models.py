"""What asks a model in ways that no task file says: ``kosmos eval explanations``, ``personas``, ``lm-eval``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from .words import print_json


def explanations(argv: Sequence[str]) -> int:
    """Print how well a PETER model rates and explains; exit code 0."""
    from kosmos_data.inspection import read_objective

    from ..explanations import explain, report

    parser = argparse.ArgumentParser(
        prog="kosmos eval explanations",
        description="Ratings and explanations of held-out reviews, from the ids alone (PETER); prints JSON.",
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="a checkpoint folder or a run directory of the objective peter")
    add("reviews", type=Path, help="corpus of reviews, e.g. corpora/reviews/test")
    add(
        "--swap",
        choices=["none", "user", "item", "both"],
        default="none",
        help="take these ids of other reviews (none)",
    )
    add("--objective", default="peter", help="its options in training, e.g. '{name: peter, features: true}' (peter)")
    add("--limit", metavar="N", type=int, help="so many reviews, always the same ones (all)")
    add("--out", metavar="FILE", type=Path, help="also write each review with what was said, JSON lines")
    add("--seed", metavar="N", type=int, default=0, help="of what is drawn (0)")
    options = vars(parser.parse_args(argv))
    out, objective = options.pop("out"), read_objective(options.pop("objective"))
    found = explain(options.pop("checkpoint"), options.pop("reviews"), objective=objective, **options)
    if out is not None:
        rows = [
            {"key": one.document.key, "reference": one.reference, "text": one.text, "rating": one.rating,
             "predicted": one.predicted}
            for one in found
        ]  # fmt: skip
        out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return print_json(report(found))


def personas(argv: Sequence[str]) -> int:
    """Print how likely texts are under their own and other personas; exit code 0."""
    from kosmos_data.inspection import read_objective

    from ..personas import judge

    parser = argparse.ArgumentParser(
        prog="kosmos eval personas",
        description="How likely held-out texts are under their own, another's and an unknown persona; prints JSON.",
        epilog="With --train the model also writes for both, and words of real texts tell who is written for.",
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="a checkpoint folder or a run directory, trained with personas")
    add("shards", type=Path, help="corpus of documents with a persona, e.g. corpora/speakers/test")
    add("--objective", default="causal", help="which tokens count, e.g. '{name: causal, loss: supervised}' (causal)")
    add("--limit", metavar="N", type=int, help="so many documents, always the same ones (all)")
    add("--train", metavar="CORPUS", type=Path, help="also write; a classifier of words learns from these real texts")
    add("--write", metavar="N", type=int, default=200, help="texts that are written for each persona (200)")
    add("--out", metavar="DIR", type=Path, help="with --train: keep the texts, as kosmos eval rate reads them")
    add("--seed", metavar="N", type=int, default=0, help="of what is drawn (0)")
    add("--alpha", metavar="SHARE", type=float, help="how much the persona counts in a model with attention routing")
    options = vars(parser.parse_args(argv))
    return print_json(judge(objective=read_objective(options.pop("objective")), **options))


def lm_eval(argv: Sequence[str]) -> int:
    """Hand a checkpoint to lm-eval; exit code lm-eval's."""
    parser = argparse.ArgumentParser(
        prog="kosmos eval lm-eval",
        description="Evaluate a checkpoint on the text tasks of lm-eval; every other option is one of lm-eval run.",
        epilog="example: kosmos eval lm-eval CHECKPOINT --tasks piqa,boolq --num_fewshot 0 --output_path out",
    )
    parser.add_argument("checkpoint", type=Path, help="a checkpoint folder or a run directory")
    options, others = parser.parse_known_args(argv)
    from kosmos.loading import find_model

    find_model(options.checkpoint)
    from ..adapters.lm_eval import main as harness

    return harness(["run", "--model", "kosmos", "--model_args", f"pretrained={options.checkpoint}", *others])
