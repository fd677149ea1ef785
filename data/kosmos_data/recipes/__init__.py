"""Recipes: one YAML with a card per corpus, and the builder that the YAML names.

A recipe file says which module of this package builds the corpus and with which options; a builder is a module with an
``Options`` dataclass and ``build(out, options, progress) -> report``. Adding a corpus is one module and one YAML.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import Progress

from kosmos import settings

# In a checkout the YAML files lie in data/recipes; a wheel carries them beside this module.
_FOLDERS = (Path(__file__).parents[2] / "recipes", Path(__file__).parent)


@dataclass
class Recipe:
    """The content of a recipe YAML.

    Args:
        builder: module of ``kosmos_data.recipes`` that builds the corpus.
        options: fields of that module's ``Options``.
    """

    builder: str
    options: dict[str, Any] = field(default_factory=dict)


def find(name: str) -> Path:
    """The YAML of the recipe called ``name``, or ``name`` itself when it is a path to one.

    Raises:
        ValueError: no such recipe; the known ones are named.
    """
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    for folder in _FOLDERS:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    raise ValueError(f"no recipe {name!r}; known: {', '.join(known()) or 'none'}, or give the path of a YAML file")


def known() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted({path.stem for folder in _FOLDERS for path in folder.glob("*.yaml")})


def make(name: str, out: str | Path, overrides: Sequence[str] = (), progress: Progress | None = None) -> dict[str, Any]:
    """Build a corpus below ``out`` and return its report, which is also written to ``out/report.json``.

    Args:
        name: a recipe's name or the path of its YAML.
        out: folder to fill; must be empty or new.
        overrides: ``key=value`` for the builder's options, for example ``seed=1``.
        progress: a live progress display to add bars to.

    Raises:
        ValueError: unknown recipe or option, a number below zero, or ``out`` is not empty.
        ModuleNotFoundError: the package that holds the source data is not installed.
    """
    recipe = settings.load(Recipe, find(name), [f"options.{override}" for override in overrides])
    try:
        builder = importlib.import_module(f".{recipe.builder}", __name__)
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{recipe.builder}":
            raise
        raise ValueError(f"{find(name)}: no builder {recipe.builder!r} in kosmos_data.recipes") from None
    options = settings.from_dict(builder.Options, recipe.options, f"recipe {name}: ")
    for option, value in settings.to_dict(options).items():
        if isinstance(value, int) and value < 0 and option != "seed":  # a slice would take all but the last so many
            raise ValueError(f"recipe {name}: {option}={value}; give 0 or more")
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; give a new folder or remove it")
    out.mkdir(parents=True, exist_ok=True)
    report = builder.build(out, options, progress or Progress(disable=True))
    report = {"recipe": name, "options": settings.to_dict(options), **report}
    (out / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return report
