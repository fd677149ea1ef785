"""The command that installs an extra of this package, for the messages about packages that only some users need."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

NAME = "kosmos-metalm"
CHECKOUT = Path(__file__).resolve().parents[1]


def install(extra: str) -> str:
    """Return a command that installs ``extra`` here and today, whether or not a release is on PyPI.

    In a checkout that is the checkout with its extra; elsewhere the packages of the extra, by what the installed wheel
    says of itself.
    """
    if (CHECKOUT / "pyproject.toml").is_file():
        return f'pip install -e "{CHECKOUT}[{extra}]"'
    return "pip install " + " ".join(f'"{package}"' for package in _packages(extra))


def _packages(extra: str) -> list[str]:
    """The requirements of an extra, those of the extras that it names included."""
    from packaging.requirements import Requirement

    found: dict[str, None] = {}
    for line in metadata.requires(NAME) or []:
        need = Requirement(line)
        if need.marker is None or not need.marker.evaluate({"extra": extra}) or need.marker.evaluate({"extra": ""}):
            continue
        inner = [name for other in need.extras for name in _packages(other)] if need.name == NAME else []
        found |= dict.fromkeys(inner or [f"{need.name}{need.specifier}"])
    return list(found)
