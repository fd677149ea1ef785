"""The YAMLs that come with the package, by name: ``kosmos train small`` works from a wheel as from a checkout."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from kosmos.suggest import suggest

_HERE = Path(__file__).parent
FOLDER = next((folder for folder in (_HERE.parent / "configs", _HERE / "configs") if folder.is_dir()), _HERE)
"""``train/configs`` of a checkout; a wheel carries it in the package."""


def known() -> dict[str, Path]:
    """Return name → file: ``small``, ``demo/tune`` and so on."""
    return {str(path.relative_to(FOLDER).with_suffix("")): path for path in sorted(FOLDER.rglob("*.yaml"))}


def find_config(word: str) -> str:
    """Return the path of the YAML that ``word`` is or names; ``train/configs/small.yaml`` names one too.

    Raises:
        FileNotFoundError: neither; the nearest name is suggested.
    """
    if Path(word).is_file():
        return word
    name = word.removeprefix("train/configs/").removesuffix(".yaml")
    if name in (names := known()):
        return str(names[name])
    if Path(word).is_dir():
        own = Path(word) / "config.yaml"
        more = f"; the settings of this run are {own}, and run={word} --resume goes on" if own.is_file() else ""
        raise FileNotFoundError(f"{word} is a folder, no settings file{more}")
    if word.endswith((".yaml", ".yml")) or "/" in word:
        raise FileNotFoundError(f"{word}: no such settings file")
    raise FileNotFoundError(f"{word}: no such settings file; {suggest(name, names, 'those that come along')}")


class ShowConfigs(argparse.Action):
    """The option ``--configs``, which prints the names and files of the YAMLs and ends."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print them and leave with exit code 0."""
        width = max(map(len, known()), default=0)
        print("\n".join(f"{name:<{width}}  {path}" for name, path in known().items()))
        parser.exit()
