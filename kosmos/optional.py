"""Packages that only some models need, imported where they are used.

transformers refuses a model of the hub with its code (``trust_remote_code``) where any package is missing that the code
imports by a plain statement, even in a function that this model never calls. So those are imported here by their name.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# timm imports this tracker wherever it is installed, for a function that nothing here calls: more than a second.
UNCALLED = "wandb"


def needed(module: str, package: str) -> Any:
    """Return an installed module.

    Args:
        module: its name, ``open_clip.model``.
        package: the name under which pip installs it.

    Raises:
        ModuleNotFoundError: it is not installed; says how to install it.
    """
    try:
        with _left_out(UNCALLED):
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"this model needs {module}: pip install {package}", name=error.name) from error


@contextmanager
def _left_out(module: str) -> Iterator[None]:
    """Let a module that nobody has imported yet look as if it were not installed."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
