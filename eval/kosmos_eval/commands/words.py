"""What the commands read and print alike."""

from __future__ import annotations

import json
import sys


def names(text: str) -> list[str]:
    """Split ``a,b`` at its commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def print_json(value: object) -> int:
    """Print a value as JSON; exit code 0."""
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")
    return 0
