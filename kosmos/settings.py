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
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from .atomic import write_atomically
from .suggest import suggest

Settings = TypeVar("Settings")
_MOST_VALUES = 1_000_000


def load(cls: type[Settings], path: str | Path | None = None, overrides: Sequence[str] = ()) -> Settings:
    """Read ``cls`` from a YAML file and ``a.b=value`` overrides (later ones win).

    Raises:
        FileNotFoundError: ``path`` does not exist.
        ValueError: malformed YAML, an unknown key (the nearest known one is suggested), a value of the wrong type, or
            an override that is not of the form ``key=value``.
    """
    values = read_yaml(path) if path is not None else {}
    where = f"{path}: " if path is not None else ""
    for override in overrides:
        _apply_override(values, override)
    return from_dict(cls, values, where)


def from_dict(cls: type[Settings], values: dict[str, Any], where: str = "") -> Settings:
    """Check ``values`` against the dataclass ``cls`` and build it; ``where`` begins every error message."""
    from jsonargparse import ArgumentError

    _reject_unknown_keys(cls, values, where)
    parser = _parser(typing.cast(Any, cls))  # mypy takes no type variable for hashable
    try:
        return parser.instantiate(parser.parse_object({"settings": copy.deepcopy(values)})).settings
    except (ArgumentError, TypeError, ValueError) as error:
        raise ValueError(f"{where}{_readable(error)}") from error


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
    try:
        values = parse_yaml(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # a wrong byte, too
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected 'key: value' lines, found a {type(values).__name__}")
    return values


def parse_yaml(text: str) -> Any:
    """What a YAML text says.

    Raises:
        ValueError: it is malformed, nested too deep, or its aliases stand for more than a million values: written out,
            nine lines of aliases of aliases would fill the memory.
    """
    import yaml

    try:
        values = yaml.safe_load(text)
        if _count(values, {}) > _MOST_VALUES:
            raise ValueError(f"its aliases stand for more than {_MOST_VALUES:,} values")
    except (yaml.YAMLError, RecursionError, OverflowError) as error:
        raise ValueError(str(error)) from error
    return values


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
    *parents, last = key.split(".")
    for parent in parents:
        child = values.get(parent)
        values[parent] = child if isinstance(child, dict) else {}
        values = values[parent]
    try:
        values[last] = parse_yaml(text) if text.strip() else ""  # none is written null
    except ValueError as error:
        raise ValueError(f"override {override!r}: the value is not valid YAML") from error
    if isinstance(values[last], str):  # YAML 1.1 reads 2e-4 as a string; users mean a number
        with contextlib.suppress(ValueError):  # any other text stays as YAML read it, without its quotes
            values[last] = float(values[last])


def _reject_unknown_keys(cls: Any, values: Any, where: str, prefix: str = "") -> None:
    """Walk nested dataclasses, lists and mappings; raise on the first key or choice that no dataclass declares."""
    cls = _without_none(cls)
    if dataclasses.is_dataclass(cls) and isinstance(values, dict):
        hints = typing.get_type_hints(cls)
        names = [field.name for field in dataclasses.fields(cls)]
        for key, value in values.items():
            if key not in names:
                raise ValueError(f"{where}unknown key {prefix + str(key)!r}; {suggest(str(key), names)}")
            _reject_unknown_keys(hints[key], value, where, f"{prefix}{key}.")
    elif typing.get_origin(cls) in (list, tuple) and isinstance(values, list):
        for index, value in enumerate(values):
            _reject_unknown_keys(typing.get_args(cls)[0], value, where, f"{prefix}{index}.")
    elif typing.get_origin(cls) is dict and isinstance(values, dict):
        for key, value in values.items():
            _reject_unknown_keys(typing.get_args(cls)[1], value, where, f"{prefix}{key}.")
    elif typing.get_origin(cls) is Literal and values is not None and values not in typing.get_args(cls):
        choices = ", ".join(map(str, typing.get_args(cls)))
        raise ValueError(f"{where}{prefix.removesuffix('.')}={values!r}: choose one of {choices}")


def _without_none(cls: Any) -> Any:
    if typing.get_origin(cls) in (Union, types.UnionType):
        options = [option for option in typing.get_args(cls) if option is not type(None)]
        return options[0] if len(options) == 1 else cls
    return cls


def _readable(error: Exception) -> str:
    text = " ".join(str(error).split())
    if re.search(r"class 'str'>.* Got value: (True|False)|Expected a? ?str.*Got:? (True|False)", text):
        text += "; YAML reads yes, no, on and off as true and false: quote them"
    return text.replace('Parser key "settings": ', "").replace('Parser key "settings.', 'key "')
