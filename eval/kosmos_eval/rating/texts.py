"""Two models' texts side by side: read from what ``kosmos eval`` writes or from plain JSON lines, matched by key."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from kosmos.pictures import open_picture
from kosmos.plain import printable

from .. import formats, results
from ..items import stable_hash
from ..where import ImageFolder, Log, Named, find_log

_SHOWN = 10  # keys that a remark names
_TEXTS = ("prediction", "text")  # what a line calls its text, the first that it has
_KEYS = ("key", "id")


@dataclass(frozen=True)
class Picture:
    """An image as a line names it; ``sha256`` where a sample log says which bytes are meant."""

    name: str
    sha256: str | None = None


@dataclass(frozen=True)
class Entry:
    """What one model wrote to one item, and what it was asked."""

    text: str
    prompt: str = ""
    context: str = ""
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class System:
    """One model's texts.

    Attributes:
        name: what the report calls it; the page never does.
        path: the file.
        entries: the texts by key, in the order of the file.
        is_log: whether ``kosmos eval`` wrote the file as a sample log.
    """

    name: str
    path: Path
    entries: Mapping[str, Entry]
    is_log: bool = False

    @cached_property
    def fingerprint(self) -> str:
        """The beginning of the SHA-256 of the file's bytes."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Pair:
    """One item as the page shows it; ``texts`` are those of the first and the second system."""

    key: str
    texts: tuple[str, str]
    prompt: str = ""
    context: str = ""
    images: tuple[Path, ...] = ()

    @property
    def is_same(self) -> bool:
        """Whether there is nothing to choose between."""
        return self.texts[0].split() == self.texts[1].split()


@dataclass
class Pairs:
    """All items that two systems have in common, in an order drawn from the seed.

    Attributes:
        systems: the first and the second.
        pairs: the items.
        remarks: what is to be known of them: those in one file only, those left out.
    """

    systems: tuple[System, System]
    pairs: list[Pair]
    remarks: list[str] = field(default_factory=list)

    @property
    def inputs(self) -> dict[str, str]:
        """The fingerprint of each system's file, by its name."""
        return {system.name: system.fingerprint for system in self.systems}


def read_pairs(
    first: str | Path,
    second: str | Path,
    images: Path | None = None,
    seed: int = 0,
    limit: int | None = None,
    task: str | None = None,
    shots: int | None = None,
    context: str | None = None,
) -> Pairs:
    """Read two models' texts and match them by key.

    Args:
        first, second: ``[NAME=]PATH`` of a run folder or a sample log of ``kosmos eval``, or of JSON lines with ``key``
            (or ``id``), ``text`` (or ``prediction``) and, where there are some, ``prompt``, ``context``, ``image``,
            ``images``.
        images: folder of the images; default the data folder that a run's results name, or the file's own folder.
        seed: of the order, and of the items that a limit leaves.
        limit: items at most.
        task, shots, context: which log of a folder; see :func:`kosmos_eval.where.find_log`.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: both are the same, a line without key or text, a key that occurs twice, no common key, no text at
            all, or no image that can be read.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit {limit} must be at least 1")
    given = [Named.parse(first), Named.parse(second)]
    one, two = (_system(named, find_log(named.path, task, shots, context)) for named in given)
    if one.path.resolve() == two.path.resolve() or one.fingerprint == two.fingerprint:
        raise ValueError(f"{one.path} and {two.path} are the same, byte for byte; give the texts of two models")
    if one.name == two.name:
        one, two = (replace(system, name=str(named.path)) for system, named in zip((one, two), given, strict=True))
    common = [key for key in one.entries if key in two.entries]
    if not common:
        keys = " and ".join(f"{next(iter(system.entries))!r}" for system in (one, two))
        raise ValueError(f"{one.path} and {two.path} have no key in common; their first keys are {keys}")
    found = Pairs((one, two), [], list(_only_in_one(one, two)))
    order = sorted(common, key=lambda key: stable_hash("rate", seed, key))
    _fill(found, order, [_folder(system, images) for system in (one, two)], limit)
    return found


def _system(named: Named, log: Log) -> System:
    """Read one file.

    Raises:
        ValueError: a line that cannot be used, or no text in all of them.
    """
    path, entries, is_log = log.path, {}, False
    for number, record in formats.read_json_lines(path):
        key, entry = _entry(record, f"{path}:{number}")
        if key in entries:
            raise ValueError(f"{path}:{number}: key {key!r} occurs twice; keep one line for each item")
        entries[key], is_log = entry, "request" in record
    if not any(entry.text.strip() for entry in entries.values()):
        what = "is empty" if not entries else "holds no text: each is empty"
        raise ValueError(f"{path} {what}; give a file in which a model wrote something")
    name = named.name or (log.model if log.task else path.stem)
    return System(name, path, entries, is_log)


def _entry(record: Mapping[str, Any], where: str) -> tuple[str, Entry]:
    key = next((record[name] for name in _KEYS if record.get(name) not in (None, "")), None)
    if not isinstance(key, str | int):
        raise ValueError(f'{where}: no "key" (or "id") that is text or a number, by which the two files are matched')
    text = next((record[name] for name in _TEXTS if name in record), None)
    if not isinstance(text, str):
        raise ValueError(f'{where}: no "text" (or "prediction"), which is what a person judges')
    pictures = _pictures(record, where)
    prompt = _text(record.get("prompt"), where, "prompt")
    if pictures:  # as the gallery shows it: of several images with a text the item's own comes last
        prompt = prompt.rsplit("<image>", 1)[-1]
        pictures = pictures[-1:] if record.get("shots") else pictures
    return printable(str(key)), Entry(
        printable(text.strip()), prompt.strip(), _text(record.get("context"), where, "context"), tuple(pictures)
    )


def _text(value: Any, where: str, name: str) -> str:
    """A text, or the turns of a conversation as lines: texts, or objects with a role (or speaker) and its text."""
    if value is None:
        return ""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return "\n".join(_turn(turn, where, name) for turn in value)
    raise ValueError(f'{where}: "{name}" is {value!r}, neither text nor a list of turns')


def _turn(turn: Any, where: str, name: str) -> str:
    if isinstance(turn, Mapping):
        who = next((turn[key] for key in ("role", "speaker", "from") if key in turn), "")
        said = next((turn[key] for key in ("content", "text", "value") if key in turn), None)
        turn = f"{who}: {said}" if isinstance(said, str) and who else said
    if not isinstance(turn, str):
        raise ValueError(f'{where}: a turn of "{name}" is {turn!r}, neither text nor an object with role and content')
    return printable(turn)


def _pictures(record: Mapping[str, Any], where: str) -> list[Picture]:
    given = record.get("images", record.get("image")) or []
    found = []
    for one in given if isinstance(given, list) else [given]:
        name, sha256 = (one.get("file"), one.get("sha256")) if isinstance(one, Mapping) else (one, None)
        if not isinstance(name, str) or not isinstance(sha256, str | None):
            raise ValueError(f"{where}: the image {one!r} is no file's name")
        found.append(Picture(name, sha256))
    return found


def _only_in_one(first: System, second: System) -> Iterator[str]:
    """Name the items that cannot be compared."""
    for system, other in ((first, second), (second, first)):
        if alone := [key for key in system.entries if key not in other.entries]:
            yield f"{len(alone)} in {system.path} only: {_listed(alone)}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _folder(system: System, images: Path | None) -> ImageFolder:
    """Where a system's images are looked for: where one says, or where its run found them, or beside its file."""
    if images is not None:
        if not images.is_dir():
            raise FileNotFoundError(f"{images}: no such folder of images")
        return ImageFolder(images)
    if system.is_log:
        task = Log.of(system.path).task
        for folder in system.path.resolve().parents[1:3]:
            if (file := folder / "results.json").is_file():
                named = next((row["folder"] for row in results.read(file) if row["task"] == task), None)
                return ImageFolder(Path(named or folder))
    return ImageFolder(system.path.parent)


def _fill(found: Pairs, order: Sequence[str], folders: Sequence[ImageFolder], limit: int | None) -> None:
    """Add items in order until there are enough; those without a readable image are left out and counted."""
    unreadable, unlike = [], 0
    for key in order:
        if len(found.pairs) == limit:
            break
        one, two = (system.entries[key] for system in found.systems)
        prompt = _common(one.prompt, two.prompt)
        unlike += prompt is None or bool(one.pictures and two.pictures and one.pictures != two.pictures)
        shown, folder = (one, folders[0]) if one.pictures or not two.pictures else (two, folders[1])
        try:
            images = tuple(_readable(picture, folder) for picture in shown.pictures)
        except (ValueError, OSError) as error:
            unreadable.append((key, str(error)))
            continue
        asked = one.prompt if prompt is None else prompt, one.context or two.context
        found.pairs.append(Pair(key, (one.text, two.text), *asked, images))
    if unreadable:
        what = f"{len(unreadable)} left out, whose image cannot be read: {_listed([key for key, _ in unreadable])}"
        found.remarks.append(f"{what} (first: {unreadable[0][1]})")
        if not found.pairs:
            raise ValueError(f"no item is left: {found.remarks[-1]}; say where the images are: --images DIR")
    if unlike:
        found.remarks.append(
            f"{unlike} were put to the two models in other words or pictures; shown are those of the first"
        )


def _common(first: str, second: str) -> str | None:
    """What both were asked: of a prompt with demonstrations and the same without them the latter; None: unlike."""
    if not first or not second:
        return first or second
    shorter, longer = sorted((first, second), key=len)
    return shorter if longer.endswith(shorter) else None


def _readable(picture: Picture, folder: ImageFolder) -> Path:
    """The file of a picture that was decoded once, so that no gap opens in the middle of the work."""
    if picture.sha256 is not None:
        path = folder.find(picture.name, picture.sha256)
    else:
        path = Path(os.path.normpath(folder.path / picture.name))
        if not path.is_relative_to(os.path.normpath(folder.path)):
            raise ValueError(f"{picture.name} lies outside of {folder.path}; give --images the folder that it is in")
    open_picture(path)
    return path
