"""Tuning a few parameters of a frozen model: PEFT's methods, and the Adapter and AdapterFusion that PEFT lacks.

settings.py says what can be asked for; methods.py attaches it to a model, storage.py saves, loads and switches it,
merge.py makes an ordinary checkpoint of it. prompts.py and bottleneck.py are the parts that PEFT cannot do here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .settings import Tuning

if TYPE_CHECKING:
    from .methods import attach
    from .storage import find_adapter, load_adapter, load_tuned, save_adapter, use

# A run's settings are read without torch; the rest is imported when it is asked for.
_HOMES = {"attach": "methods"}
_HOMES |= dict.fromkeys(("find_adapter", "load_adapter", "load_tuned", "save_adapter", "use"), "storage")

__all__ = ["Tuning", "attach", "find_adapter", "load_adapter", "load_tuned", "save_adapter", "use"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
