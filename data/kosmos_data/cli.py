"""``kosmos data``: make, filter, import, clean, inspect, check and index corpora; order and replay what a run reads.

Each verb is a thin door on a function of this package. Mistakes of the user are raised as ValueError or an OSError; the
``kosmos`` command shows them as one line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from kosmos.keys import add_keys
from kosmos.plain import counted, escape, pasted, styled

from .adapters import FORMATS
from .recipes import known


def main(argv: Sequence[str]) -> int:
    """Run one verb of ``kosmos data``; return the exit code."""
    parser = _parser()
    if not argv:
        parser.print_help(sys.stderr)
        return 2
    arguments, rest = parser.parse_known_args(argv)
    arguments.overrides = rest  # key=value may stand anywhere, as for every other verb of kosmos
    if wrong := [word for word in rest if "=" not in word or word.startswith("-") or "overridable" not in arguments]:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    return arguments.run(arguments) or 0


def _make(arguments: argparse.Namespace) -> None:
    from . import recipes

    overrides = arguments.overrides + ([] if arguments.seed is None else [f"seed={arguments.seed}"])
    recipes.find(arguments.recipe)  # before a progress display is opened
    console = Console(stderr=True)
    with Progress(console=console) as progress:
        report = recipes.make(arguments.recipe, arguments.out, overrides, progress)
    Console(emoji=False).print_json(data=report)


def _web(arguments: argparse.Namespace) -> None:
    from kosmos import settings

    from .web.ledger_report import table
    from .web.options import WebOptions
    from .web.pipeline import run

    # An override that stands among the files looks like one of them.
    overrides = [word for word in arguments.warcs if "=" in word and not Path(word).exists()] + arguments.overrides
    warcs = [word for word in arguments.warcs if word not in overrides]
    options = settings.load(WebOptions, arguments.config, overrides)
    with Progress(console=Console(stderr=True)) as progress:
        ledger = run(warcs, arguments.out, options, progress)
    if ledger is None:
        done = f"handed to Slurm; when the jobs are done: kosmos data report {escape(pasted(arguments.out))}"
        Console(emoji=False).print(done)
    else:
        Console(emoji=False).print(table(ledger))


def _clean(arguments: argparse.Namespace) -> None:
    from kosmos import settings

    from .clean.options import CleanOptions
    from .clean.pipeline import clean, look
    from .web.ledger_report import table

    if not arguments.out and not arguments.dry_run:
        raise ValueError("give --out FOLDER for what stays, or --dry-run to see what would go")
    options = settings.load(CleanOptions, arguments.config, [*_clean_overrides(arguments), *arguments.overrides])
    with Progress(console=Console(stderr=True)) as progress:
        source, out = arguments.source, arguments.out
        done = look(source, options, progress) if arguments.dry_run else clean(source, out, options, progress)
    console = Console(emoji=False)
    if done is None:
        console.print(f"handed to Slurm; when the jobs are done: kosmos data report {escape(pasted(arguments.out))}")
        return
    console.print(table(done.ledger))
    if absent := done.absent(options.leave_out):
        there = ", ".join(list(done.sources)[:12])
        message = f"no document is of {', '.join(absent)}; the sources are: {there}"
        console.print(f"[yellow]{escape(message)}[/yellow]", soft_wrap=True)
    if not arguments.dry_run:
        places = f"{arguments.out}: shards, ledger.json, and left_out.jsonl with the key of each that went"
        console.print(escape(places), soft_wrap=True)


def _clean_overrides(arguments: argparse.Namespace) -> list[str]:
    """The options that have a short name of their own, as the settings class has them."""
    named: dict[str, Any] = {"format": arguments.format, "images": arguments.images, "field": arguments.field}
    named |= {"person": arguments.person, "language": arguments.language}
    if arguments.leave_out is not None:
        named["leave_out"] = [name.strip() for name in arguments.leave_out.split(",") if name.strip()]
    if arguments.held_out is not None:
        named["held_out.texts"] = arguments.held_out
    # As JSON, since YAML reads a bare "no" (Norwegian) as false.
    return [f"{name}={json.dumps(value)}" for name, value in named.items() if value is not None]


def _report(arguments: argparse.Namespace) -> None:
    from .web.ledger import read_ledger
    from .web.ledger_report import table, write_report

    Console(emoji=False).print(table(read_ledger(arguments.folder)))
    Console(emoji=False).print(f"as a page to look at: {escape(str(write_report(arguments.folder)))}", soft_wrap=True)


def _fetch(arguments: argparse.Namespace) -> None:
    from .web.http.fetch import FetchOptions, fetch, read_list

    options = FetchOptions(concurrency=arguments.concurrency, per_host=arguments.per_host)
    if arguments.user_agent:
        options = replace(options, user_agent=arguments.user_agent)
    with Progress(console=Console(stderr=True)) as progress:
        counts = fetch(read_list(arguments.urls), arguments.out, options, progress)
    table = Table("addresses", "outcome")
    for reason, count in counts.items():
        table.add_row(str(count), escape(reason))
    Console(emoji=False).print(table)


def _inspect(arguments: argparse.Namespace) -> None:
    from .errors import BadSample
    from .inspection import inspect

    processor = _load_processor(arguments.processor) if arguments.processor else None
    try:
        console, seed = Console(emoji=False), arguments.objective_seed
        inspect(arguments.path, console, arguments.objective, processor, arguments.masks, seed)
    except BadSample as error:
        raise ValueError(f"{arguments.path}: {error}; kosmos data check lists all such samples") from error


def _check(arguments: argparse.Namespace) -> int:
    from .check import check_corpus
    from .inspection import corpora_below

    table = Table("shard", "documents", "images", "problems")
    bad = 0
    for root in [Path(corpus) for corpus in arguments.paths]:
        folders = [root] if (root / "index.json").exists() else [Path(c.root) for c in corpora_below(str(root))]
        for folder in folders:
            for report in check_corpus(folder, decode_images=not arguments.no_images):
                bad += not report.good
                found = report.problems + report.bad.lines()
                mark = "[red]" + escape("\n".join(found)) + "[/red]" if found else "[green]none[/green]"
                table.add_row(escape(f"{folder}/{report.name}"), str(report.documents), str(report.images), mark)
    Console(emoji=False).print(table)
    return 2 if bad else 0


def _import(arguments: argparse.Namespace) -> None:
    from .adapters import convert

    options = {"field": arguments.field, "turns": arguments.turns}
    shards, skipped = convert(arguments.format, arguments.source, arguments.out, arguments.images, **options)
    documents, images = sum(shard.documents for shard in shards), sum(shard.images for shard in shards)
    Console(emoji=False).print(
        f"{escape(arguments.out)}: {counted(documents, 'document')}, {counted(images, 'image')} in "
        f"{counted(len(shards), 'shard')}",
        soft_wrap=True,
    )
    for line in skipped.lines():
        Console(emoji=False).print(f"[yellow]skipped {escape(line)}[/yellow]", soft_wrap=True)


def _index(arguments: argparse.Namespace) -> None:
    from .check import index_folder

    shards = index_folder(arguments.path)
    Console(emoji=False).print(
        f"{escape(arguments.path)}: indexed {len(shards)} shards, {sum(s.documents for s in shards)} documents"
    )


def _order(arguments: argparse.Namespace) -> None:
    from .replay import order

    config, processor = _read_run(arguments)
    state = Path(arguments.state) if arguments.state else None
    for step, digest in order(config, processor, arguments.ranks, arguments.start, arguments.steps, state):
        print(step, digest, flush=True)


def _replay(arguments: argparse.Namespace) -> None:
    from .replay import replay

    config, processor = _read_run(arguments)
    state = Path(arguments.state) if arguments.state else None
    console = Console(emoji=False)
    rows = list(replay(config, processor, arguments.step, state))
    shown = [(number, row) for number, row in rows if arguments.row in (None, number)]
    if not shown:
        raise ValueError(f"step {arguments.step} has the rows {rows[0][0]} to {rows[-1][0]}, not {arguments.row}")
    for number, row in shown:
        console.rule(f"step {arguments.step}, row {number}")
        for source, text in row:
            console.print(f"{styled('cyan', source)} {escape(text)}")


def _read_run(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Loader settings and processor of a run's YAML; the sections of other programs in it are not looked at."""
    from kosmos import settings

    from .config import DataConfig

    path = arguments.config
    values = settings.read_yaml(path)
    if "data" not in values:
        raise ValueError(f"{path} has no section 'data'")
    config = settings.from_dict(DataConfig, values["data"], f"{path}: data: ")
    if getattr(arguments, "workers", None) is not None:
        config.workers = arguments.workers
    folder = arguments.processor or values.get("processor")
    if not folder:
        raise ValueError(f"{path} names no processor: give --processor FOLDER")
    return config, _load_processor(folder)


def _load_processor(folder: str) -> Any:
    from kosmos.loading import find_folder
    from kosmos.processing_kosmos import load_processor

    return load_processor(find_folder(folder, "processor_config.json") or folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kosmos data", description=(__doc__ or "").splitlines()[0].replace("``", ""))
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    _add_verbs_that_make(verbs)
    _add_verbs_of_the_web(verbs)
    _add_verbs_that_look(verbs)
    _add_verbs_about_runs(verbs)
    return parser


def _add_verbs_that_make(verbs: Any) -> None:
    make = verbs.add_parser(
        "make",
        help="build a corpus: make RECIPE --out DIR [key=value …]",
        epilog="key=value changes an option of the recipe, as its YAML has it: kosmos data make text --out corpora "
        "text_characters=1000",
    )
    make.add_argument("recipe", help=f"{', '.join(known())}, or path of a recipe YAML")
    make.add_argument("--out", required=True, help="folder to fill; new or empty")
    make.add_argument("--seed", type=int, help="overrides the recipe's seed")
    make.set_defaults(run=_make, overridable=True)

    imports = verbs.add_parser("import", help="convert a published data set: import FORMAT SOURCE --out DIR")
    imports.add_argument("format", help=", ".join(FORMATS))
    imports.add_argument("source", help="file or folder in that format")
    imports.add_argument("--images", help="folder of the picture files; default: the source's folder")
    imports.add_argument("--field", help="of the text in JSON lines, parquet, CSV; default: text, caption …")
    imports.add_argument("--turns", type=int, help="most questions of a document; longer dialogues become several")
    imports.add_argument("--out", required=True, help="folder for the shards; new or empty")
    imports.set_defaults(run=_import)

    clean = verbs.add_parser(
        "clean",
        help="leave out duplicates, other languages, held-out texts, sources: clean SOURCE --out DIR [key=value …]",
        epilog="kosmos data clean corpora/pile --leave-out 'Github,ArXiv,StackExchange,PubMed Central' --held-out "
        "test.jsonl --out corpora/clean; run it again to go on after a kill; key=value changes any option, such as "
        "near_duplicates=false or execution.workers=8 (--keys lists them)",
    )
    clean.add_argument("source", metavar="SOURCE", help="folder of shards; else what kosmos data import reads")
    clean.add_argument("--out", help="folder for the shards; new, or of an interrupted run to go on with")
    clean.add_argument("--dry-run", action="store_true", help="print what would be left out and write nothing")
    clean.add_argument("--format", help=f"of a SOURCE that is no shards: {', '.join(FORMATS)}; default: text")
    clean.add_argument("--images", help="folder of the picture files, for such a format")
    clean.add_argument("--field", help="name of the field that holds the text, for such a format")
    clean.add_argument("--leave-out", metavar="NAMES", help="sources to leave out, as meta names them, with commas")
    held_out = "evaluation texts, .txt, .json, .jsonl or shards; may be given several times"
    clean.add_argument("--held-out", action="append", metavar="FILE", help=held_out)
    clean.add_argument("--language", help="language to keep; any: all; default: en")
    clean.add_argument("--person", choices=("drop", "keep"), help="captions with <PERSON> in them; default: drop")
    clean.add_argument("--config", help="YAML with the options of kosmos_data.clean.options.CleanOptions")
    add_keys(clean, "kosmos_data.clean.options:CleanOptions")
    clean.set_defaults(run=_clean, overridable=True)

    index = verbs.add_parser("index", help="index a folder of webdataset tars that another program wrote")
    index.add_argument("path", help="folder with .tar files")
    index.set_defaults(run=_index)


def _add_verbs_of_the_web(verbs: Any) -> None:
    web = verbs.add_parser("web", help="WARC files to interleaved documents: web WARC … --out DIR [key=value …]")
    web.add_argument(
        "warcs", nargs="+", metavar="WARC", help=".warc or .warc.gz files of pages, with or without images"
    )
    web.add_argument("--out", required=True, help="folder for the shards; new, or of an interrupted run to go on with")
    web.add_argument("--config", help="YAML with the options of kosmos_data.web.options.WebOptions")
    add_keys(web, "kosmos_data.web.options:WebOptions")
    web.set_defaults(run=_web, overridable=True)

    report = verbs.add_parser("report", help="what filters dropped from a corpus, as a table and as an HTML page")
    report.add_argument("folder", help="corpus made by kosmos data web or clean")
    report.set_defaults(run=_report)

    fetch = verbs.add_parser("fetch", help="fetch the images of a list of addresses: fetch URLS --out DIR")
    fetch.add_argument("urls", help="text file, an address a line")
    fetch.add_argument("--out", required=True, help="folder for the images and fetch.sqlite; run again to go on")
    fetch.add_argument("--user-agent", help="who is asking, for robots.txt and the hosts: a name and a contact")
    fetch.add_argument("--concurrency", type=int, default=64, help="requests at a time")
    fetch.add_argument("--per-host", type=int, default=2, help="of them, to one host")
    fetch.set_defaults(run=_fetch)


def _add_verbs_that_look(verbs: Any) -> None:
    inspect = verbs.add_parser("inspect", help="print one document of each kind")
    inspect.add_argument("path", help="a shard, a corpus folder, or a folder of corpora")
    inspect.add_argument("--objective", help="also show what it makes of it: a name, or '{name: ul2, variant: ul2r}'")
    inspect.add_argument("--processor", help="folder with tokenizer and image processor, or a run, for --objective")
    inspect.add_argument("--masks", help="folder to write the attention masks to, as PNG")
    inspect.add_argument("--objective-seed", type=int, default=0, help="of the objective's draws")
    inspect.set_defaults(run=_inspect)

    check = verbs.add_parser("check", help="read every byte and say what is wrong; exit code 2 if anything is")
    check.add_argument("paths", nargs="+", help="corpus folders, or folders of corpora")
    check.add_argument("--no-images", action="store_true", help="do not decode images")
    check.set_defaults(run=_check)


def _add_verbs_about_runs(verbs: Any) -> None:
    order = verbs.add_parser("order", help="print 'step sha256' of every global batch, to compare runs with diff")
    _add_run_arguments(order)
    order.add_argument("--ranks", type=int, default=1, help="data-parallel ranks to imitate")
    order.add_argument("--workers", type=int, help="loader processes per rank; default as in CONFIG")
    order.add_argument("--start", type=int, default=0, help="first step")
    order.add_argument("--steps", type=int, required=True, help="number of steps")
    order.set_defaults(run=_order)

    replay = verbs.add_parser("replay", help="print the documents of one step's batch again")
    _add_run_arguments(replay)
    replay.add_argument("--step", type=int, required=True, help="which step")
    replay.add_argument("--row", type=int, help="only this row")
    replay.set_defaults(run=_replay)


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML with a 'data' section, such as a training run's")
    parser.add_argument("--processor", help="folder with tokenizer and image processor; default as in CONFIG")
    parser.add_argument("--state", help="loader state (JSON) to start from; 'order' also writes it at the end")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
