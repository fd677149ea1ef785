"""``python -m kosmos_train.study``: claims by name, a study of objectives by its YAML, or the page alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from kosmos import settings
from kosmos.keys import add_keys
from kosmos.suggest import suggest

from ..arguments import require_run
from ..named_configs import find_config
from . import claims, first_rows, page
from .claims import Claim

PROG = "python -m kosmos_train.study"
PLACES = ("run", "page", "readme")
EPILOG = f"""\
examples:
  {PROG} --list
  {PROG} xpos_length run=runs/evidence                         # writes runs/evidence/evidence.md
  {PROG} all run=runs/evidence page=docs/evidence.md
  {PROG} demonstration_labels run=runs/evidence checkpoint=runs/mine/tune
  {PROG} page=docs/evidence.md readme=README.md                # only draws the page, its first rows into the README
  {PROG} train/configs/objectives/study.yaml run=runs/objectives/study

After a kill the same command goes on; what is finished is not done again.
"""


def main(argv: Sequence[str]) -> None:
    """Do what the words say."""
    arguments = parser().parse_intermixed_args(list(argv))
    console = Console(emoji=False)
    if arguments.list:
        list_claims(console)
        return
    given = [word.partition("=")[::2] for word in arguments.words if "=" in word]
    places = {key: value for key, value in given if key in PLACES}
    overrides = [f"{key}={value}" for key, value in given if key not in PLACES]
    names = [word for word in arguments.words if "=" not in word]
    if not names:
        draw_page(places.get("page"), places.get("readme"), console)
        return
    study = is_study(names[0])
    folder = Path(require_run(places.get("run")))
    if study:
        compare_objectives(names, overrides, folder, " ".join([PROG, *argv]), console)
        return
    known = list(claims.known())
    chosen = [claims.load(name, overrides) for one in names for name in (known if one == "all" else [one])]
    target = Path(places.get("page") or folder / "evidence.md")
    for claim in sorted(chosen, key=lambda one: (one.row, one.name)):
        try_one(claim, folder, target, [*overrides, *(f"{key}={value}" for key, value in given if key == "run")],
                arguments.jobs, console)  # fmt: skip
    draw_page(str(target), places.get("readme"), console)


def parser() -> argparse.ArgumentParser:
    """The command's parser."""
    made = argparse.ArgumentParser(
        prog=PROG,
        description="Try what papers claim, with controls, seeds and intervals; or compare objectives by a study.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "words",
        nargs="*",
        metavar="WORD",
        help="names of claims (--list), all, or a YAML; run=DIR for runs and results, page=FILE.md for the page, "
        "readme=FILE.md for its first rows, and any field of the claim or study, e.g. train.steps=50 seeds=[0]",
    )
    made.add_argument("--list", action="store_true", help="the claims, and which command tries each")
    made.add_argument("--jobs", type=int, default=1, metavar="N", help="runs of claims at a time (1)")
    add_keys(made, "kosmos_train.study.run:StudyConfig")
    return made


def is_study(name: str) -> bool:
    """Whether a word names the YAML of a study of objectives; one with comparisons is a claim.

    Raises:
        ValueError: it is neither a YAML nor a claim.
    """
    if name.endswith((".yaml", ".yml")):
        return "comparisons" not in settings.read_yaml(find_config(name))
    if name != "all" and name not in claims.known():
        known = suggest(name, claims.known(), "known claims")
        raise ValueError(f"{name!r} is no claim and no YAML; {known}")
    return False


def try_one(claim: Claim, folder: Path, target: Path, overrides: Sequence[str], jobs: int, console: Console) -> None:
    """Try one claim, write its JSON, and say what came out."""
    from . import trial  # it needs all parts of the trainer; --help does not

    console.print(f"{claim.name}: {claim.claim}", markup=False)
    command = " ".join([PROG, claim.name, *overrides])
    found = trial.try_claim(claim, folder, command, console, jobs)
    trial.write(found, target)
    for one in found["comparisons"]:
        console.print(f"  {one['words']}: {page.signed(one)}: {one['verdict']}", markup=False)


def compare_objectives(
    names: Sequence[str], overrides: Sequence[str], folder: Path, command: str, console: Console
) -> None:
    """Do a study of objectives and print its tables.

    Raises:
        ValueError: more than one YAML.
    """
    from . import run

    if len(names) > 1:
        raise ValueError(f"one study at a time, not {', '.join(names)}")
    study = settings.load(run.StudyConfig, find_config(names[0]), overrides)
    run.run(study, folder, command, console)
    console.print(Markdown((folder / "study.md").read_text(encoding="utf-8")))
    console.print(f"{folder}: study.md, study.json, study-*.png")


def draw_page(target: str | None, readme: str | None, console: Console) -> None:
    """Draw the page anew from what lies beside it, and its first rows into a README.

    Raises:
        ValueError: no page is named.
    """
    if not target:
        raise ValueError(f"what is tried? name a claim, or page=FILE.md to draw the page; {PROG} --list has the claims")
    page.draw(Path(target))
    folder = Path(target).with_suffix("")
    console.print(f"{target}: the page of all claims tried, drawn from {folder}/CLAIM.json", markup=False)
    if readme:
        first_rows.draw(Path(readme), Path(target))
        console.print(f"{readme}: its first rows", markup=False)


def list_claims(console: Console) -> None:
    """Print the claims in the order of the page."""
    for claim in claims.every():
        console.print(f"{claim.name}: {claim.claim}\n    {claim.paper}", markup=False, highlight=False)
