"""Documents, shards, objectives, packing, mixing and loading of interleaved text and images.

Names are imported when first used, so ``import kosmos_data`` costs nothing and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "Audio": "document",
    "BadSample": "errors",
    "Corpus": "reader",
    "DataConfig": "config",
    "Document": "document",
    "Entity": "document",
    "Example": "example",
    "Image": "document",
    "Loader": "loader",
    "ShardWriter": "shards",
    "SourceConfig": "config",
    "Span": "document",
    "StepBatch": "batch",
    "Text": "document",
    "Video": "document",
    "build_loader": "loader",
    "merge_states": "loader",
    "write_shards": "shards",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
