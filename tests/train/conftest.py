"""A tiny corpus, processor and model config for all tests of training."""

from __future__ import annotations

import copy
import gc
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # forked ranks import their functions by name

import tiny


@pytest.fixture(scope="session")
def _world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    import deepspeed  # noqa: F401 - with all that a training imports

    values = tiny.make_world(tmp_path_factory.mktemp("world"))
    gc.freeze()  # as in forks._run
    return values


@pytest.fixture
def values(_world: dict[str, Any]) -> dict[str, Any]:
    """Settings of a run of 12 steps on the tiny corpus, to be changed at will."""
    return copy.deepcopy(_world)
