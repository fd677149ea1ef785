"""The wheel: four packages, their settings and presets, and nothing else."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

PACKAGES = {"kosmos", "kosmos_data", "kosmos_eval", "kosmos_train"}


def test_the_wheel_holds_the_four_packages_with_their_yaml(repository: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
    ]
    subprocess.run([*command, str(repository)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == PACKAGES
    for folder, place in (("data/recipes", "kosmos_data/recipes"), ("eval/tasks", "kosmos_eval/tasks")):
        assert {f"{place}/{path.name}" for path in (repository / folder).glob("*.yaml")} <= set(names)
    configs = {path.relative_to(repository / "train") for path in (repository / "train" / "configs").rglob("*.yaml")}
    assert {f"kosmos_train/{path}" for path in configs} <= set(names)
    assert all(f"{package}/py.typed" in names for package in PACKAGES)
    assert "kosmos/presets/kosmos-1.json" in names


def test_modules_with_their_own_rules_exist(repository: Path) -> None:
    """What pyproject.toml lets mypy pass over is there: a name of nothing would hide what is meant."""
    settings = tomllib.loads((repository / "pyproject.toml").read_text())
    for rules in settings["tool"]["mypy"]["overrides"]:
        for name in [rules["module"]] if isinstance(rules["module"], str) else rules["module"]:
            ours = name.startswith("kosmos") and "*" not in name
            assert not ours or importlib.util.find_spec(name) is not None, name
