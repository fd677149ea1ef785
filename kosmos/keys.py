"""Every key of a settings class with type, default and meaning: what ``--keys`` prints and the reference page shows.

The meaning of a field is the string below it, or its entry under ``Args:`` or ``Attributes:`` of the class; nothing is
written twice.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import inspect
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Union

REQUIRED = "required"


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a YAML."""

    path: str
    """Its place, e.g. ``optim.lr``; ``sources[].name`` stands in each entry of a list, ``<name>`` for a free name."""
    kind: str
    """The type in words of Python, or the choices."""
    default: str
    """As YAML has it; ``required`` where there is none."""
    meaning: str
    """What it does; empty where the class says nothing."""

    def lines(self) -> list[str]:
        """The key for a terminal: name, type and default, then the meaning."""
        value = f" ({REQUIRED})" if self.default == REQUIRED else f" = {self.default}"
        text = textwrap.fill(self.meaning.replace("``", ""), 100, initial_indent="    ", subsequent_indent="    ")
        return [f"{self.path}: {self.kind}{value}", *([text] if text else [])]


def keys(cls: type, prefix: str = "") -> list[Key]:
    """List the keys of a dataclass in order, those of nested ones behind the key that holds them.

    Args:
        cls: a settings class.
        prefix: goes before every name.
    """
    hints, meanings, found = _hints(cls), field_meanings(cls), []
    for field in dataclasses.fields(cls):
        if not field.init or field.name.startswith("_") or field.name not in hints:
            continue
        hint = hints[field.name]
        found.append(Key(prefix + field.name, _kind(hint), _default(field), meanings.get(field.name, "")))
        for inner, suffix in _nested(hint):
            found += keys(inner, f"{prefix}{field.name}{suffix}.")
    return found


def field_meanings(cls: type) -> dict[str, str]:
    """What a class says of its fields, by name, those of its parents included; one line each."""
    found: dict[str, str] = {}
    for kind in reversed(cls.__mro__):
        if dataclasses.is_dataclass(kind):
            names = [field.name for field in dataclasses.fields(kind)]
            found |= _from_docstring(inspect.cleandoc(kind.__dict__.get("__doc__") or ""), names)
            found |= _from_strings(kind)
    return found


def _from_strings(cls: type) -> dict[str, str]:
    """The strings that stand below fields; Python drops them, so the source is read again."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    except (OSError, TypeError):  # made by a program, as in a notebook or by exec: nothing is written below its fields
        return {}
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }  # fmt: skip


def _from_docstring(doc: str, names: Sequence[str]) -> dict[str, str]:
    """The entries ``name: …``, ``name, name: …`` under Args or Attributes; one may follow another's full stop."""
    section = re.search(r"^(?:Args|Attributes):\n((?:(?:[ ]{4}.*)?\n?)*)", doc, re.MULTILINE)
    if not section or not names:
        return {}
    text = "\n".join(line.removeprefix("    ") for line in section[1].splitlines())
    any_name = "(?:" + "|".join(map(re.escape, names)) + ")"
    pieces = re.split(rf"(?:^|(?<=\.)\s+)({any_name}(?:, {any_name})*):\s", text, flags=re.MULTILINE)[1:]
    return {
        name: " ".join(meaning.split())
        for together, meaning in zip(pieces[::2], pieces[1::2], strict=True)
        for name in together.split(", ")
    }


def _hints(cls: type) -> dict[str, Any]:
    """The types of the fields; of transformers' configurations those of the class alone, as others do not resolve."""
    try:
        return typing.get_type_hints(cls)
    except NameError:
        return dict(cls.__annotations__)


def _nested(hint: Any) -> Iterator[tuple[type, str]]:
    """The dataclasses within a type, and how one gets there."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not hint.__module__.startswith("transformers"):
            yield hint, ""
    elif origin in (Union, types.UnionType):
        for argument in arguments:
            yield from _nested(argument)
    elif origin in (list, tuple):
        yield from ((inner, f"[]{suffix}") for inner, suffix in _nested(arguments[0]))
    elif origin in (dict, Mapping):
        yield from ((inner, f".<name>{suffix}") for inner, suffix in _nested(arguments[1]))


def _kind(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " | ".join(_kind(argument) for argument in arguments)
    if hint is type(None):
        return "null"
    if origin is not None:
        inside = ", ".join(_kind(argument) for argument in arguments if argument is not Ellipsis)
        return f"{origin.__name__}[{inside}]"
    if dataclasses.is_dataclass(hint):
        return "mapping"
    return getattr(hint, "__name__", str(hint)).replace("Any", "any")


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return _as_yaml(field.default)
    if field.default_factory is dataclasses.MISSING:
        return REQUIRED
    try:
        value = field.default_factory()
    except TypeError:  # a section with keys that must be given
        return "{…}"
    return "{…}" if dataclasses.is_dataclass(value) else _as_yaml(value)


def _as_yaml(value: Any) -> str:
    import yaml

    if value == "":
        return '""'
    value = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).split("\n...")[0].strip()


class ShowKeys(argparse.Action):
    """The option ``--keys``, which prints all keys of a settings class and ends, as ``--help`` does.

    Args:
        settings: ``module:Class``, imported only when it is asked for.
    """

    def __init__(self, option_strings: Sequence[str], dest: str, settings: str, help: str | None = None) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)
        self.settings = settings

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print the keys and leave with exit code 0."""
        module, name = self.settings.split(":")
        cls = getattr(importlib.import_module(module), name)
        print("\n".join(line for key in keys(cls) for line in key.lines()))
        parser.exit()


def add_keys(parser: argparse.ArgumentParser, settings: str) -> None:
    """Give a command the option ``--keys`` for the class ``module:Class``."""
    parser.add_argument("--keys", action=ShowKeys, settings=settings, help="print every key of the YAML and end")
