"""What a person may write shorter than the classes of settings have it, and what fits no class.

A group of settings that has one main setting may be its value alone (``tuning: lora``), a list of one entry that entry
(``freeze: model.decoder.*``), a whole number ``1e6``. A class names its main setting in ``SHORT``, a mapping's field in
its metadata.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, Literal, Union

from .keys import keys
from .suggest import suggest


class MisfitError(ValueError):
    """A value that no class of settings has a place for.

    Args:
        key: its place, as in ``optim.lr``.
        message: what is wrong; begins with that place.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def short(name: str) -> dict[str, str]:
    """The metadata of a field that holds a mapping, which may be the value of its entry ``name`` alone."""
    return {"short": name}


def written_out(cls: Any, values: Any, place: str = "") -> Any:
    """Return ``values`` as the class of settings ``cls`` has them.

    Args:
        cls: a dataclass, or the type of one of its fields.
        values: as a YAML has them; they stay as they are.
        place: where they stand, ``optim`` for instance.

    Raises:
        MisfitError: a key or a choice that no dataclass declares, or one value where there should be several.
    """
    cls = _without_none(cls)
    origin, arguments = typing.get_origin(cls), typing.get_args(cls)
    if dataclasses.is_dataclass(cls):
        return _group(cls, values, place)
    if origin in (list, tuple):
        return _entries(cls, values, place)
    if origin is dict and isinstance(values, dict):
        return {key: written_out(arguments[1], value, _below(place, key)) for key, value in values.items()}
    if origin is Literal and values is not None and values not in arguments:
        raise MisfitError(place, f"{place}={values!r}: choose one of {', '.join(map(str, arguments))}")
    if cls is int and isinstance(values, float) and values.is_integer():  # 1e6
        return int(values)
    return values


def _group(cls: Any, values: Any, place: str) -> Any:
    if values is None:
        return None if not place else {}  # ``optim:`` with nothing below it
    name = getattr(cls, "SHORT", None)
    if not isinstance(values, dict):
        if name is None or isinstance(values, bool | list):
            first = f"{place}.{dataclasses.fields(cls)[0].name}"
            raise MisfitError(place, f'key "{place}": a group of settings is expected, {first}=… Got value: {values}')
        values = {name: values}
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    whole = {}
    for key, value in values.items():
        inner = _below(place, key)
        if key not in fields:
            raise MisfitError(inner, f"unknown key {inner!r}; {_nearest(cls, str(key), place)}")
        main = fields[key].metadata.get("short")
        value = {main: value} if main and isinstance(value, str) else value
        none = value is None and _takes_none(hints[key])
        whole[key] = None if none else written_out(hints[key], value, inner)
    return whole


def _entries(cls: Any, values: Any, place: str) -> Any:
    """The entries of a list; a single one needs no brackets."""
    inner = typing.get_args(cls)[0]
    if not isinstance(values, list | tuple):
        single: Any = dict if dataclasses.is_dataclass(inner) else (str, int, float)
        single = (dict, str) if hasattr(inner, "SHORT") else single
        if typing.get_origin(cls) is tuple or not isinstance(values, single):
            return values  # jsonargparse says what is expected
        values = [values]
    return [written_out(inner, value, f"{place}.{number}") for number, value in enumerate(values)]


def _nearest(cls: type, key: str, place: str) -> str:
    """The end of the message about an unknown key: the nearest one of its group, or where else one of this name is."""
    names = [field.name for field in dataclasses.fields(cls)]
    if "did you mean" not in (found := suggest(key, names)):
        elsewhere = [_below(place, one.path) for one in keys(cls) if one.path.split(".")[-1] == key]
        if elsewhere:
            return f"did you mean {' or '.join(map(repr, elsewhere[:3]))}?"
    return found


def _below(place: str, key: object) -> str:
    return f"{place}.{key}" if place else str(key)


def _takes_none(hint: Any) -> bool:
    return hint is Any or type(None) in typing.get_args(hint)


def _without_none(cls: Any) -> Any:
    if typing.get_origin(cls) in (Union, types.UnionType):
        options = [option for option in typing.get_args(cls) if option is not type(None)]
        return options[0] if len(options) == 1 else cls
    return cls
