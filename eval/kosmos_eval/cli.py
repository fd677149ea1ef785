"""``kosmos eval``: evaluate a checkpoint, score prediction files, compare and report results.

The first word decides: ``score``, ``report``, ``gallery``, ``compare``, ``contamination``, ``explanations``,
``personas``, ``rate``, ``tasks``, ``make``, ``documents``, ``lm-eval``; anything else is the checkpoint to evaluate.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kosmos.plain import counted
from kosmos_data.errors import BadSample

from .collection import none_searched, rarely_searched

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
        type=_names,
        required=True,
        help="names (kosmos eval tasks) or YAML files",
    )
    add("--data", metavar="DIR", type=Path, required=True, help="folder that the tasks' paths are relative to")
    add("--shots", metavar="K,K", type=_numbers, default=[0], help="numbers of demonstrations, e.g. 0,2,4,8 (0)")
    add(
        "--context", dest="contexts", metavar="C,C", type=_names, default=["image+text"],
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


def _score(argv: Sequence[str]) -> int:
    from .score import ALLOWED, Judges, score_files, score_samples
    from .where import add_which

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
    add("--metrics", metavar="A,B", type=_names, default=[], help="see below; default vqa, or bleu,rouge_l,cider")
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
        return _print_json(score_samples(options.samples, options.metrics, options.seed, judges, *which))
    report = score_files(
        options.predictions,
        options.references,
        options.questions,
        options.metrics,
        options.partial,
        options.seed,
        judges,
    )
    return _print_json(report)


def _report(argv: Sequence[str]) -> int:
    from .report import report

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


def _gallery(argv: Sequence[str]) -> int:
    from .gallery import gallery
    from .where import add_which

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


def _compare(argv: Sequence[str]) -> int:
    from .compare import compare_samples, differences, line
    from .where import Named, add_which, find_log

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
        return _print_json(found.to_dict() | {"differ": unlike})
    names = [one.name or log.model for one, log in zip(given, logs, strict=True)]
    if names[0] == names[1]:  # two runs of one name, or one model asked in two ways
        names = [one.name or str(one.path) for one in given]
    print(line(found, *names))
    for text in unlike:
        print(f"they were not asked alike: {text}")
    return 0


def _tasks(argv: Sequence[str]) -> int:
    from rich.console import Console
    from rich.table import Table

    from kosmos.tables import show

    from . import tasks

    argparse.ArgumentParser(prog="kosmos eval tasks", description="List the tasks.").parse_args(argv)
    table = Table(box=None, pad_edge=False)
    for heading, fixed in (("task", True), ("what", False), ("metric", True), ("answers by", True)):
        table.add_column(heading, no_wrap=fixed)
    for name in tasks.known():
        task = tasks.load(name)
        table.add_row(name, task.description, task.metrics[0], task.decoding.method)
    console = Console(emoji=False)
    show(console, table)
    console.print(
        f"\nThe files, with their data and expected numbers: {tasks.known()['easy_vqa'].parent}", soft_wrap=True
    )
    return 0


def _make(argv: Sequence[str]) -> int:
    from .suite import MAKERS, make

    parser = argparse.ArgumentParser(
        prog="kosmos eval make", description="Make the data of a part of the KOSMOS-1 suite."
    )
    parser.add_argument("name", help=", ".join(MAKERS))
    parser.add_argument("--out", type=Path, required=True, help="a new folder, later --data of kosmos eval")
    parser.add_argument("--count", type=int, default=200, help="items at most (200)")
    parser.add_argument("--seed", type=int, default=0, help="of everything drawn (0)")
    parser.add_argument("--source", type=Path, help="published or own data to make it from, where a part can use it")
    options = parser.parse_args(argv)
    count = make(options.name, options.out, options.count, options.seed, options.source)
    sys.stdout.write(f"{options.out / 'test.jsonl'}: {count} items\n")
    return 0


def _contamination(argv: Sequence[str]) -> int:
    from .contamination import check

    parser = argparse.ArgumentParser(
        prog="kosmos eval contamination",
        description="Look for a task's test images (bytes) and texts (13-grams) in training shards; prints JSON.",
    )
    parser.add_argument("--task", required=True, help="name or YAML path")
    parser.add_argument("--data", type=Path, required=True, help="folder that the task's paths are relative to")
    parser.add_argument("--shards", nargs="+", required=True, help="corpus folders, each with index.json")
    options = parser.parse_args(argv)
    return _print_json(check(options.task, options.data, options.shards).to_dict())


def _lm_eval(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="kosmos eval lm-eval",
        description="Evaluate a checkpoint on the text tasks of lm-eval; every other option is one of lm-eval run.",
        epilog="example: kosmos eval lm-eval CHECKPOINT --tasks piqa,boolq --num_fewshot 0 --output_path out",
    )
    parser.add_argument("checkpoint", type=Path, help="a checkpoint folder or a run directory")
    options, others = parser.parse_known_args(argv)
    from kosmos.loading import find_model

    find_model(options.checkpoint)
    from .adapters.lm_eval import main as harness

    return harness(["run", "--model", "kosmos", "--model_args", f"pretrained={options.checkpoint}", *others])


def _explanations(argv: Sequence[str]) -> int:
    from kosmos_data.inspection import read_objective

    from .explanations import explain, report

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
    return _print_json(report(found))


def _personas(argv: Sequence[str]) -> int:
    from kosmos_data.inspection import read_objective

    from .personas import judge

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
    return _print_json(judge(objective=read_objective(options.pop("objective")), **options))


def _documents(argv: Sequence[str]) -> int:
    from kosmos_data import write_shards

    from . import tasks, training
    from .readers import load_items

    parser = argparse.ArgumentParser(
        prog="kosmos eval documents",
        description="Write a task's items as documents to learn from: the prompt is read, the answer written. "
        "A chosen answer carries its choices, from which the objective cloze learns.",
        epilog="example: kosmos eval documents glm_boolq --data superglue --out corpora/boolq",
    )
    add = parser.add_argument
    add("task", help="name of a task, or its YAML")
    add("--data", metavar="DIR", type=Path, required=True, help="folder of its data")
    add("--split", metavar="NAME", default="train", help="which items (train)")
    add("--out", metavar="DIR", type=Path, required=True, help="corpus that is written")
    add("--set", metavar="KEY=VALUE", nargs="*", default=[], help="change keys of the task's YAML")
    options = parser.parse_args(argv)
    task = tasks.load(options.task, options.set)
    items = load_items(task, options.data, options.split)
    write_shards(options.out, training.documents(task, items))
    print(f"{options.out}: {counted(len(items), 'document')}; next: kosmos data inspect {options.out}")
    return 0


def _rate(argv: Sequence[str]) -> int:
    from .rating.command import main

    return main(argv)


def _print_json(value: object) -> int:
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")
    return 0


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in _names(text)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 0,2,4,8") from error


USES: dict[str, Callable[[Sequence[str]], int]] = {
    "score": _score,
    "report": _report,
    "gallery": _gallery,
    "compare": _compare,
    "rate": _rate,
    "tasks": _tasks,
    "make": _make,
    "documents": _documents,
    "contamination": _contamination,
    "explanations": _explanations,
    "personas": _personas,
    "lm-eval": _lm_eval,
}
