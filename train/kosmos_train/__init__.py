"""Training of Kosmos models: :func:`train` does what a :class:`TrainConfig` says, in one run directory."""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {"Outcome": "pretrain", "TrainConfig": "config", "train": "pretrain"}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
