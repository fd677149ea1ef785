"""Objectives: document → :class:`~kosmos_data.example.Example`, one module each, found by name.

A module of this folder *is* an objective: it defines ``build(processor, **options)``, which returns a function of
(document, seed). Adding an objective is adding one file; nothing else lists them. The seed is a pure function of the
run's seed, the epoch and the document, so an objective that draws at random gives the same example after a resume.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from ..document import Document
from ..example import Example

if TYPE_CHECKING:
    from kosmos.processing_kosmos import KosmosProcessor

Objective: TypeAlias = Callable[[Document, int], Example]


def names() -> list[str]:
    """All objectives, by name (modules of this folder that do not begin with an underscore)."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def get(name: str, processor: KosmosProcessor, **options: Any) -> Objective:
    """The objective called ``name`` with its options.

    Raises:
        ValueError: no such objective, or an option that it does not have; the nearest known one is suggested.
    """
    if name not in names():
        raise ValueError(f"no objective {name!r}; {_suggest(name, names())}")
    build = importlib.import_module(f".{name}", __name__).build
    known = [parameter for parameter in inspect.signature(build).parameters if parameter != "processor"]
    for option in options:
        if option not in known:
            raise ValueError(f"objective {name!r} has no option {option!r}; {_suggest(option, known)}")
    return build(processor, **options)


def _suggest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none'}"
