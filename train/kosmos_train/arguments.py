"""The words after a training verb: ``CONFIG run=DIR [key=value …]``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from kosmos import settings
from kosmos.keys import add_keys

Settings = TypeVar("Settings")


def add_run_arguments(parser: argparse.ArgumentParser, settings: str) -> None:
    """Declare the YAML, the overrides, and ``--keys`` of the settings class ``module:Class``."""
    parser.add_argument("config", help="YAML of the run, see train/configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="run=DIR, and any field, e.g. steps=100")
    add_keys(parser, settings)


def parse_run_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, str | None]:
    """Parse ``argv``; options may stand anywhere. ``run=DIR`` is taken out of the overrides and returned (or None)."""
    arguments = parser.parse_intermixed_args(list(argv))
    if "=" in arguments.config and not Path(arguments.config).exists():  # no YAML: that of the run itself
        arguments.overrides.insert(0, arguments.config)
        arguments.config = None
    runs = [word.removeprefix("run=") for word in arguments.overrides if word.startswith("run=")]
    arguments.overrides = [word for word in arguments.overrides if not word.startswith("run=")]
    if arguments.config is None:
        kept = Path(runs[-1]) / "config.yaml" if runs and runs[-1] else None
        if kept is None or not kept.is_file():
            where = f"{kept} is not there" if kept else f"{arguments.overrides[0]!r} is none"
            raise ValueError(f"which YAML? {where}: {parser.prog} CONFIG run=DIR [key=value …]")
        arguments.config = str(kept)
    return arguments, runs[-1] if runs else None


def parse_run(prog: str, description: str, kind: type[Settings], argv: Sequence[str]) -> tuple[Settings, str]:
    """Parse the words of a verb without options; return its settings, of class ``kind``, and the run directory."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    add_run_arguments(parser, f"{kind.__module__}:{kind.__name__}")
    arguments, run = parse_run_arguments(parser, argv)
    return settings.load(kind, arguments.config, arguments.overrides), require_run(run)


def require_run(run: str | None) -> str:
    """The run directory; ValueError if none was given."""
    if not run:
        raise ValueError("where to? add run=DIR, for example run=runs/first")
    return run
