"""What reads or makes the data of tasks: ``kosmos eval tasks``, ``make``, ``documents``, ``contamination``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kosmos.plain import counted, pasted

from .words import print_json


def tasks(argv: Sequence[str]) -> int:
    """List the tasks; exit code 0."""
    from rich.console import Console
    from rich.table import Table

    from kosmos.tables import show

    from .. import tasks

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


def make(argv: Sequence[str]) -> int:
    """Make the data of a part of the KOSMOS-1 suite; exit code 0."""
    from ..suite import MAKERS, make

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


def documents(argv: Sequence[str]) -> int:
    """Write a task's items as a corpus; exit code 0."""
    from kosmos_data import write_shards

    from .. import tasks, training
    from ..readers import load_items

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
    print(f"{options.out}: {counted(len(items), 'document')}; next: kosmos data inspect {pasted(options.out)}")
    return 0


def contamination(argv: Sequence[str]) -> int:
    """Look for a task's items in training shards; exit code 0."""
    from ..contamination import check

    parser = argparse.ArgumentParser(
        prog="kosmos eval contamination",
        description="Look for a task's test images (bytes) and texts (13-grams) in training shards; prints JSON.",
    )
    parser.add_argument("--task", required=True, help="name or YAML path")
    parser.add_argument("--data", type=Path, required=True, help="folder that the task's paths are relative to")
    parser.add_argument("--shards", nargs="+", required=True, help="corpus folders, each with index.json")
    options = parser.parse_args(argv)
    return print_json(check(options.task, options.data, options.shards).to_dict())
