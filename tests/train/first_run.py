"""What a process does once, for its first training: imports, and the parser of the settings. The server of forks.py
does it for all."""

from __future__ import annotations

import importlib

from kosmos import settings
from kosmos_train.config import TrainConfig

for name in ("images", "objectives.causal"):
    importlib.import_module(f"kosmos_data.{name}")
for name in ("fitting", "inputs", "simulate"):
    importlib.import_module(f"kosmos_train.{name}")
settings.from_dict(TrainConfig, {"data": {"sources": [{"name": "any", "shards": "any"}]}})
