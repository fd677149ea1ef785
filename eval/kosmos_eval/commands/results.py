"""What reads results: ``kosmos eval score``, ``report``, ``gallery``, ``compare``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kosmos.plain import counted

from .words import names, print_json


def score(argv: Sequence[str]) -> int:
    """Score prediction files, or the answers of an evaluation anew; exit code 0."""
    from ..score import ALLOWED, Judges, score_files, score_samples
    from ..where import add_which

    parser = argparse.ArgumentParser(
        prog="kosmos eval score",
        description="Score result files in the published COCO-caption and VQAv2 formats, or the answers of an\n"
        "evaluation anew (--samples), without a model that answers; prints JSON.",
        epilog="".join(f"metrics for {kind}: {', '.join(names)}\n" for kind, names in ALLOWED.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--predictions", metavar="P.json", type=Path, help="[{image_id, caption}, …] or [{question_id, answer}, …]")
    add("--references", metavar="R.json", type=Path, help="COCO caption or VQAv2 annotation file")
    add("--samples", metavar="RUN", type=Path, help="in the place of both: a run folder, or a sample log")
    add_which(parser)
    add("--questions", metavar="Q.json", type=Path, help="VQAv2 question file, checked against the annotations")
    add("--metrics", metavar="A,B", type=names, default=[], help="see below; default vqa, or bleu,rouge_l,cider")
    add("--partial", action="store_true", help="VQA: score only the questions that have a prediction")
    add("--seed", type=int, default=0, help="seed of the bootstrap intervals (0)")
    add("--images", type=Path, help="clipscore: folder of the images")
    add("--clip", help="clipscore: open_clip folder or name")
    add("--clip-processor", type=Path, help="clipscore: Kosmos processor folder, for a CLIP of kosmos vision")
    add("--clip-prefix", default="A photo depicts ", help="clipscore: put before captions ('A photo depicts ')")
    add("--encoder", type=Path, help="bertscore: folder of a BERT-like encoder")
    options = parser.parse_args(argv)
    files = options.predictions, options.references
    if (options.samples is None) != all(files) or (options.samples and any(files)):
        parser.error("give --predictions and --references, or --samples")
    judges = Judges(options.clip, options.clip_processor, options.clip_prefix, options.images, options.encoder)
    if options.samples is not None:
        which = options.task, options.shots, options.context
        return print_json(score_samples(options.samples, options.metrics, options.seed, judges, *which))
    report = score_files(
        options.predictions,
        options.references,
        options.questions,
        options.metrics,
        options.partial,
        options.seed,
        judges,
    )
    return print_json(report)


def report(argv: Sequence[str]) -> int:
    """Write Markdown tables and a plot of several runs' results; exit code 0."""
    from ..report import report

    parser = argparse.ArgumentParser(prog="kosmos eval report", description="Markdown tables and a plot of results.")
    parser.add_argument(
        "results", nargs="+", metavar="[NAME=]RUN", help="run folders, evaluations' folders or results.json files"
    )
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for report.md and shots.png (.)")
    options = parser.parse_args(argv)
    written = report(options.results, options.out)
    sys.stdout.write(written.read_text(encoding="utf-8"))
    sys.stderr.write(f"{written} and {options.out / 'shots.png'} written\n")
    return 0


def gallery(argv: Sequence[str]) -> int:
    """Draw what a model was asked and answered; exit code 0."""
    from ..gallery import gallery
    from ..where import add_which

    parser = argparse.ArgumentParser(
        prog="kosmos eval gallery", description="A picture of what a model was asked and answered."
    )
    add = parser.add_argument
    add("samples", type=Path, metavar="RUN", help="run folder, or a sample log: RUN/eval/samples/MODEL/….jsonl")
    add("--images", metavar="DIR", type=Path, required=True, help="folder of the images, for example --data of the run")
    add("--out", metavar="FILE", type=Path, default=Path("answers.png"), help="PNG, PDF or SVG (answers.png)")
    add("--count", metavar="N", type=int, default=12, help="items at most, each with an image of its own (12)")
    add("--wrong", action="store_true", help="those with the lowest scores instead of a sample")
    add("--seed", metavar="N", type=int, default=0, help="of the sample (0)")
    add_which(parser)
    options = parser.parse_args(argv)
    shown = gallery(**vars(options))
    sys.stderr.write(f"{options.out}: {counted(len(shown), 'item')}\n")
    return 0


def compare(argv: Sequence[str]) -> int:
    """Print the paired difference of two models; exit code 0."""
    from ..compare import compare_samples, differences, line
    from ..where import Named, add_which, find_log

    parser = argparse.ArgumentParser(
        prog="kosmos eval compare",
        description="Paired bootstrap of two models on the same items: second − first, with its 95 % interval.",
    )
    add = parser.add_argument
    add("first", metavar="[NAME=]RUN", help="run folder, or a sample log: RUN/eval/samples/MODEL/….jsonl")
    add("second", metavar="[NAME=]RUN", help="the same of the other model")
    add_which(parser)
    add("--metric", help="any that the answers allow (the first of the task)")
    add("--seed", type=int, default=0, help="seed of the bootstrap (0)")
    add("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    given = [Named.parse(options.first), Named.parse(options.second)]
    logs = [find_log(one.path, options.task, options.shots, options.context) for one in given]
    found = compare_samples(logs[0].path, logs[1].path, options.metric, options.seed)
    unlike = differences(*logs)
    if options.json:
        return print_json(found.to_dict() | {"differ": unlike})
    names = [one.name or log.model for one, log in zip(given, logs, strict=True)]
    if names[0] == names[1]:  # two runs of one name, or one model asked in two ways
        names = [one.name or str(one.path) for one in given]
    print(line(found, *names))
    for text in unlike:
        print(f"they were not asked alike: {text}")
    return 0
