"""Tests of what a GPU would do, without one; those marked ``simulated`` take minutes: ``pytest -m simulated``.

Each file runs in a process of its own: torch counts its devices at the first backward pass of a process, so the fake
one must be there before any other test trains.
"""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

sys.path.insert(0, str(Path(__file__).parent))

FRESH = "KOSMOS_TESTS_IN_A_FRESH_PROCESS"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "simulated" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("simulated"):
                item.add_marker(pytest.mark.skip(reason="takes minutes: pytest -m simulated"))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Take the outcome of a test from the fresh process of its file; inside of that process run it."""
    if FRESH in os.environ:
        return None
    found = outcomes(pyfuncitem.path, pyfuncitem.config.option.markexpr)
    case = found.get(pyfuncitem.name)
    assert case is not None, f"the fresh process ended before {pyfuncitem.name}: {found['']}"
    kind, text = case
    if kind == "skipped":
        pytest.skip(text)
    assert kind == "passed", text
    return True


@cache
def outcomes(path: Path, marked: str) -> dict[str, tuple[str, str]]:
    """Test → (passed, skipped, failure or error; its text), and under no name the last lines of what was printed."""
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        words = [sys.executable, "-m", "pytest", "-p", "no:xdist", f"--junitxml={report}", str(path)]
        run = subprocess.run(
            [*words, *(["-m", marked] if marked else [])],
            capture_output=True,
            text=True,
            env={name: value for name, value in os.environ.items() if "XDIST" not in name} | {FRESH: "1"},
        )
        found = {"": ("printed", (run.stdout + run.stderr)[-2000:])}
        if report.is_file():
            for case in ElementTree.parse(report).iter("testcase"):
                outcome = next((child for child in case if child.tag in ("skipped", "failure", "error")), None)
                kind, text = ("passed", "") if outcome is None else (outcome.tag, outcome.text or "")
                found[case.attrib["name"]] = kind, text
    return found
