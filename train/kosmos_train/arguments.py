"""The words after a training verb: ``CONFIG run=DIR [key=value …]``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from kosmos import settings
from kosmos.keys import add_keys

from .named_configs import ShowConfigs, find_config

Settings = TypeVar("Settings")


def add_run_arguments(parser: argparse.ArgumentParser, settings: str) -> None:
    """Declare the YAML, the overrides, and ``--keys`` of the settings class ``module:Class``."""
    parser.add_argument("config", help="YAML of the run, or the name of one that comes along (--configs)")
    what = "run=DIR, and any field, e.g. steps=100"
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=what)
    add_keys(parser, settings)
    parser.add_argument("--configs", action=ShowConfigs, nargs=0, help="print the YAMLs that come along and end")


def parse_run_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, str | None]:
    """Parse ``argv``; options may stand anywhere. ``run=DIR`` is taken out of the overrides and returned (or None)."""
    arguments, unknown = parser.parse_known_intermixed_args(list(argv))
    if unknown:
        parser.error(_as_settings(unknown))
    if "=" in arguments.config and not Path(arguments.config).exists():  # the YAML is further on, or the run has it
        words = [arguments.config, *arguments.overrides]
        arguments.config = next((word for word in words if "=" not in word), None)
        arguments.overrides = [word for word in words if word != arguments.config]
    runs = [word.removeprefix("run=") for word in arguments.overrides if word.startswith("run=")]
    arguments.overrides = [word for word in arguments.overrides if not word.startswith("run=")]
    if arguments.config is None:
        kept = Path(runs[-1]) / "config.yaml" if runs and runs[-1] else None
        if kept is None or not kept.is_file():
            where = f"{kept} is not there" if kept else f"{arguments.overrides[0]!r} is none"
            raise ValueError(f"which YAML? {where}: {parser.prog} CONFIG run=DIR [key=value …]")
        arguments.config = str(kept)
    arguments.config = find_config(arguments.config)
    return arguments, runs[-1] if runs else None


def parse_run(prog: str, description: str, kind: type[Settings], argv: Sequence[str]) -> tuple[Settings, str]:
    """Parse the words of a verb without options; return its settings, of class ``kind``, and the run directory.

    Raises:
        ValueError: the directory holds something.
    """
    parser = argparse.ArgumentParser(prog=prog, description=description)
    add_run_arguments(parser, f"{kind.__module__}:{kind.__name__}")
    arguments, run = parse_run_arguments(parser, argv)
    config, folder = settings.load(kind, arguments.config, arguments.overrides), Path(require_run(run))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"run={folder} is there already; name a new or empty folder, or remove this one first")
    return config, str(folder)


def require_run(run: str | None) -> str:
    """The run directory; ValueError if none was given."""
    if not run:
        raise ValueError("where to? add run=DIR, for example run=runs/first")
    return run


def _as_settings(unknown: Sequence[str]) -> str:
    """What to say to ``--run x`` or ``--steps 5``: settings have no dashes."""
    first, *rest = unknown
    key, has_value, value = first.lstrip("-").partition("=")
    key = {"out": "run", "output": "run", "output_dir": "run"}.get(key.replace("-", "_"), key.replace("-", "_"))
    value = value if has_value else rest[0] if rest and not rest[0].startswith("-") else "…"
    return f"unrecognized arguments: {' '.join(unknown)}; settings are written key=value: {key}={value}"
