"""Tests of what a GPU would do, without one; those marked ``simulated`` take minutes: ``pytest -m simulated``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "simulated" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("simulated"):
                item.add_marker(pytest.mark.skip(reason="takes minutes: pytest -m simulated"))
