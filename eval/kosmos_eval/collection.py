"""Less search for cyclic garbage, where millions of objects are made of which none is garbage.

Python searches after every 700 new objects what it has not searched yet, and that again with what survives: of the
evaluation of a small model, a tenth of the time.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def none_searched(frozen: bool = False) -> Iterator[None]:
    """Search nothing while this lasts; ``frozen``: nor, later, what is there at its end, for instance libraries."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if frozen:
            gc.freeze()
        if was_enabled:
            gc.enable()


@contextmanager
def rarely_searched() -> Iterator[None]:
    """Search a seventieth as often."""
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
