"""What a person types for a result, ``[NAME=]FOLDER_OR_FILE``, as the ``results.json`` or sample log that is meant."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kosmos.addresses import refuse_address
from kosmos.plain import pasted

from .items import content_hash

_LOG = re.compile(r"(?P<task>.+)-(?P<shots>\d+)shot-(?P<context>.+)\.jsonl")
_OF_TRAINING = ("metrics.jsonl", "samples.jsonl")
"""What the run folder of a training holds besides, and is no sample log."""


@dataclass(frozen=True)
class Named:
    """A path, and the name that was put before it."""

    path: Path
    name: str | None = None

    @classmethod
    def parse(cls, given: str | Path) -> Named:
        """``NAME=PATH`` or ``PATH``; a path that exists is itself, whatever signs it has."""
        name, sign, rest = str(given).partition("=")
        if sign and name and "/" not in name and not Path(given).exists():
            return cls(Path(rest), name)
        return cls(Path(given))


@dataclass(frozen=True)
class Log:
    """A sample log and what its name says: ``samples/MODEL/TASK-SHOTSshot-CONTEXT.jsonl``."""

    path: Path
    task: str | None = None
    shots: int | None = None
    context: str | None = None

    @classmethod
    def of(cls, path: Path) -> Log:
        """Read the name; a file that was called otherwise says nothing."""
        found = _LOG.fullmatch(path.name)
        return cls(path, found["task"], int(found["shots"]), found["context"]) if found else cls(path)

    @property
    def model(self) -> str:
        """The model's name, which is the folder's."""
        return self.path.resolve().parent.name


def find_results(path: Path) -> Path:
    """The ``results.json`` of a run folder, an evaluation's folder, or the file itself.

    In a run folder it is that of ``kosmos eval``, or else that of the last evaluation during training.

    Raises:
        FileNotFoundError: there is none.
    """
    if path.is_file():
        return path
    _demand(path)
    places = [path / "results.json", path / "eval" / "results.json", *_steps(path, "results.json")]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(
        f"{path}: no results here, nor in its eval/; write them with kosmos eval {pasted(path)} --tasks … --data …"
    )


def add_which(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which log of a folder is meant, for :func:`find_log`."""
    parser.add_argument("--task", help="of a folder: the log of this task")
    parser.add_argument("--shots", type=int, help="with so many demonstrations (0, if there is one)")
    parser.add_argument("--context", help="with this context (image+text, if there is one)")


def find_log(path: Path, task: str | None = None, shots: int | None = None, context: str | None = None) -> Log:
    """The one sample log that is meant by a file, or by a folder and what is wanted of it.

    Of a folder's logs the one of 0 shots and context ``image+text`` is taken where nothing else is asked for.

    Raises:
        FileNotFoundError: there is none.
        ValueError: several remain; they are named.
    """
    if path.is_file():
        return Log.of(path)
    _demand(path)
    patterns = ("*.jsonl", "samples/*/*.jsonl", "eval/samples/*/*.jsonl")
    found_by = ([file for file in sorted(path.glob(pattern)) if file.name not in _OF_TRAINING] for pattern in patterns)
    files = next(filter(None, found_by), [])
    files = files or next((some for step in _steps(path, "samples") if (some := sorted(step.glob("*/*.jsonl")))), [])
    logs = [Log.of(file) for file in files if ".part-" not in file.name]
    if not logs:
        raise FileNotFoundError(f"{path}: no samples here; kosmos eval writes them to OUT/samples/")
    wanted = {"task": task, "shots": shots, "context": context}
    asked = {key: value for key, value in wanted.items() if value is not None}
    found = [log for log in logs if all(getattr(log, key) == value for key, value in asked.items())]
    if not found:
        words = ", ".join(f"{key} {value}" for key, value in asked.items())
        raise FileNotFoundError(f"{path}: no samples of {words}; there are {_names(logs)}")
    for key, usual in (("shots", 0), ("context", "image+text")):
        found = [log for log in found if getattr(log, key) == usual] or found
    if len(found) > 1:
        raise ValueError(f"{path} holds several sample logs, say which (--task, or the file): {_names(found)}")
    return found[0]


class ImageFolder:
    """The images of a folder, at any depth.

    Args:
        path: the folder; it is looked through when the first image is asked for.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def find(self, name: str, sha256: str) -> Path:
        """Return the file of this name and content.

        Raises:
            FileNotFoundError: there is none, or no such folder.
        """
        for path in self._files.get(name, []):
            if content_hash(path) == sha256:
                return path
        raise FileNotFoundError(f"{self.path}: no image {name} with SHA-256 {sha256[:12]}… in it")

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        files: dict[str, list[Path]] = {}
        _demand(self.path)
        for path in sorted(self.path.rglob("*")):
            files.setdefault(path.name, []).append(path)
        return files


def _demand(path: Path) -> None:
    refuse_address(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")


def _steps(run: Path, name: str) -> list[Path]:
    """``name`` in the folders of the evaluations during training, the newest first."""
    return sorted(run.glob(f"eval/step-*/{name}"), reverse=True)


def _names(logs: list[Log]) -> str:
    return ", ".join(f"{log.model}/{log.path.name}" for log in logs[:8]) + (", …" if len(logs) > 8 else "")
