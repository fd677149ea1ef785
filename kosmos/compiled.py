"""Small functions that run compiled on a GPU while the blocks around them are run as they are written.

Each is compiled once a process and only in training, whose shapes stay: a prompt of any length would be compiled anew.
Inside of a block that is compiled itself they are part of that block's graph.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch


@cache
def compiled(function: Callable[..., Any], dynamic: bool | None = None) -> Callable[..., Any]:
    """Return ``function`` through ``torch.compile``, the same one at each call; ``dynamic`` as there."""
    return torch.compile(function, dynamic=dynamic)
