"""``kosmos data``: make, inspect, check, index, order and replay.

Each verb is a thin door on a function of this package. Mistakes of the user are raised as ValueError or an OSError; the
``kosmos`` command shows them as one line.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console
from rich.progress import Progress


def main(argv: Sequence[str]) -> int:
    """Run one verb of ``kosmos data``; return the exit code."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    arguments.overrides = rest  # key=value may stand anywhere, as for every other verb of kosmos
    if wrong := [word for word in rest if "=" not in word or word.startswith("-")]:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    return arguments.run(arguments) or 0


def _make(arguments: argparse.Namespace) -> None:
    from . import recipes

    overrides = list(arguments.overrides) + ([] if arguments.seed is None else [f"seed={arguments.seed}"])
    console = Console(stderr=True)
    with Progress(console=console) as progress:
        report = recipes.make(arguments.recipe, arguments.out, overrides, progress)
    console.print_json(data=report)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kosmos data", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    make = verbs.add_parser("make", help="build a corpus from a recipe: make RECIPE --out DIR [key=value …]")
    make.add_argument("recipe", help="name of a recipe (starter, …) or path of a recipe YAML")
    make.add_argument("--out", required=True, help="folder to fill; new or empty")
    make.add_argument("--seed", type=int, help="overrides the recipe's seed")
    make.set_defaults(run=_make)
    return parser
