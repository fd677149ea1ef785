"""Typed settings: a dataclass, a YAML file and ``key=value`` overrides become one checked instance.

Every YAML of the project (runs, recipes, evaluation tasks) is read here, so all of them reject unknown keys with a
suggestion, check types, and name the file in the error. jsonargparse does the parsing and the type checks.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import re
import typing
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .atomic import write_atomically
from .read_json import read_utf8
from .short_forms import MisfitError, written_out
from .suggest import suggest

Settings = TypeVar("Settings")
_MOST_VALUES = 1_000_000
_LONGEST = 1 << 18  # characters; PyYAML takes up to six seconds for so many


def load(cls: type[Settings], path: str | Path | None = None, overrides: Sequence[str] = ()) -> Settings:
    """Read ``cls`` from a YAML file and ``a.b=value`` overrides (later ones win).

    Raises:
        FileNotFoundError: ``path`` does not exist.
        ValueError: malformed YAML, an unknown key (the nearest known one is suggested), a value of the wrong type, or
            an override that is not of the form ``key=value``.
    """
    values = read_yaml(path) if path is not None else {}
    for override in overrides:
        _apply_override(values, override)

    def where(key: str) -> str:  # the last word that said it, else the file
        for override in reversed(overrides):
            name = override.partition("=")[0]
            if (key and f"{key}.".startswith(f"{name}.")) or f"{name}.".startswith(f"{key}."):
                return f"{override}: "
        return f"{path}: " if path is not None else ""

    return _build(cls, values, where)


def from_dict(cls: type[Settings], values: dict[str, Any], where: str = "") -> Settings:
    """Check ``values`` against the dataclass ``cls`` and build it; ``where`` begins every error message."""
    return _build(cls, values, lambda _: where)


def _build(cls: type[Settings], values: dict[str, Any], where: Callable[[str], str]) -> Settings:
    """The instance; ``where`` says of a key which file or word gave it, the beginning of an error message."""
    from jsonargparse import ArgumentError

    parser = _parser(typing.cast(Any, cls))  # mypy takes no type variable for hashable
    try:
        whole = written_out(cls, copy.deepcopy(values))
        # What is not said, the dataclasses fill in themselves: to write it out and check it took twice as long again.
        return parser.instantiate(parser.parse_object({"settings": whole}, defaults=False)).settings
    except MisfitError as error:
        raise ValueError(f"{where(error.key)}{error}") from error
    except (ArgumentError, TypeError, ValueError) as error:
        text = _readable(error)
        named = re.search(r'key "([^"]+)"|\b([a-z_]+(?:\.[a-z_]+)*) is required', text)
        raise ValueError(f"{where((named[1] or named[2]) if named else '')}{text}") from error


@functools.cache
def _parser(cls: type) -> Any:
    """The parser of a dataclass, made once: that takes longer than reading the values of a run."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--settings", type=cls)
    return parser


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; ValueError if it is malformed or not a mapping."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such settings file")
    _refuse_long(path.stat().st_size // 4, path)  # of the longest characters, before it is read
    text = read_utf8(path)
    try:
        values = parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected 'key: value' lines, found a {type(values).__name__}")
    return values


def parse_yaml(text: str) -> Any:
    """What a YAML text says.

    Raises:
        ValueError: it is malformed, too long, nested too deep, says a key twice, or its aliases stand for more than a
            million values: written out, nine lines of aliases of aliases would fill the memory.
    """
    import yaml

    _refuse_long(len(text))
    try:
        try:
            values = yaml.load(text, _loader("CSafeLoader"))  # of libyaml, ten times as fast
        except (AttributeError, ValueError, yaml.YAMLError, RecursionError):
            values = yaml.load(text, _loader("SafeLoader"))  # there is none, or this one says more of what is wrong
        if _count(values, {}) > _MOST_VALUES:
            raise ValueError(f"its aliases stand for more than {_MOST_VALUES:,} values")
    except (yaml.YAMLError, RecursionError, OverflowError) as error:
        raise ValueError(str(error)) from error
    return values


def _refuse_long(characters: int, path: Path | None = None) -> None:
    if characters > _LONGEST:
        where = "" if path is None else f"{path}: "
        raise ValueError(f"{where}more than {_LONGEST:,} characters; no settings are so long")


@functools.cache
def _loader(name: str) -> Any:
    """PyYAML's safe loader, which takes the last of two keys of one name without a word; this one refuses them."""
    import yaml

    class Loader(getattr(yaml, name)):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = (key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<")
            for (_, name), times in Counter((key.tag, key.value) for key in keys).items():
                if times > 1:
                    problem = f"the key {name!r} is said twice"
                    raise yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)
            return super().construct_mapping(node, deep)

    return Loader


def _count(value: Any, known: dict[int, int]) -> int:
    """Values in ``value`` with its aliases written out; each list and mapping is walked once."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = _MOST_VALUES  # an alias of itself, which would have no end
        inner = value.values() if isinstance(value, dict) else value
        known[id(value)] = min(_MOST_VALUES + 1, 1 + sum(_count(one, known) for one in inner))
    return known[id(value)]


def to_dict(settings: Any) -> dict[str, Any]:
    """The plain mapping of a settings instance, ready for YAML or JSON."""
    return dataclasses.asdict(settings)


def write_yaml(settings: Any, path: str | Path) -> None:
    """Write a settings instance, or its plain mapping, so that :func:`load` reads it back equal."""
    import yaml

    values = settings if isinstance(settings, dict) else to_dict(settings)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
    write_atomically(Path(path), text)


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ValueError(f"override {override!r} is not of the form key=value")
    try:
        value = parse_yaml(text) if text.strip() else ""  # none is written null
    except ValueError as error:
        raise ValueError(f"override {override!r}: the value is not valid YAML") from error
    if isinstance(value, str):  # YAML 1.1 reads 2e-4 as a string; users mean a number
        with contextlib.suppress(ValueError):  # any other text stays as YAML read it, without its quotes
            value = float(value)
    *parents, last = key.split(".")
    group: Any = values
    for parent in parents:
        place = _place(group, parent, override)
        if not isinstance(group[place] if isinstance(group, list) else group.get(place), dict | list):
            group[place] = {}
        group = group[place]
    group[_place(group, last, override)] = value


def _place(group: dict[str, Any] | list[Any], word: str, override: str) -> Any:
    """The key that ``word`` is; in a list the number of the entry, which its ``name`` may say too."""
    if isinstance(group, dict):
        return word
    names = [str(entry.get("name")) if isinstance(entry, dict) else "" for entry in group]
    if word in names:
        return names.index(word)
    if not (word.isascii() and word.isdigit() and int(word) < len(group)):
        known = [*map(str, range(len(group))), *filter(None, names)]
        raise ValueError(f"{override}: the list has no entry {word!r}; {suggest(word, known)}")
    return int(word)


def _readable(error: Exception) -> str:
    """jsonargparse's message in the words of YAML."""
    text = " ".join(str(error).split())
    if re.search(r"class 'str'>.* Got value: (True|False)|Expected a? ?str.*Got:? (True|False)", text):
        text += "; YAML reads yes, no, on and off as true and false: quote them"
    text = re.sub(r"Problem with given class_path '[^']*': ", "", text).replace('Parser key "', 'key "')
    text = re.sub(r"the following arguments are required: settings\.([\w.]+)", r"\1 is required", text)
    text = text.replace('key "settings": ', "").replace('key "settings.', 'key "')
    return re.sub(r"Expected a <class '(\w+)'>", lambda kind: f"expected {_WORDS.get(kind[1], kind[0])}", text)


_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}
_WORDS |= {"list": "a list, [a, b]", "tuple": "a list, [a, b]", "dict": "a mapping, {key: value}"}
