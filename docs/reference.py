"""The generated pages of the site: every command, every key of a YAML, every public class; none is typed by hand.

Each function returns one page as Markdown. Commands come from argparse, keys from the settings classes
(:mod:`kosmos.keys`, what ``--keys`` prints), classes and functions from their docstrings.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

SETTINGS = {
    "kosmos train, kosmos tune": "kosmos_train.config:TrainConfig",
    "kosmos tokenizer": "kosmos_train.parts.tokenizer:TokenizerConfig",
    "kosmos vision": "kosmos_train.parts.vision_data:VisionConfig",
    "kosmos encoder": "kosmos_train.parts.encoder:EncoderConfig",
    "kosmos data web": "kosmos_data.web.options:WebOptions",
    "kosmos data clean": "kosmos_data.clean.options:CleanOptions",
    "kosmos eval: a task": "kosmos_eval.tasks:Task",
    "python -m kosmos_train.study": "kosmos_train.study.run:StudyConfig",
    "python -m kosmos_train.study: a claim": "kosmos_train.study.claims:Claim",
    "model.overrides": "kosmos.configuration_kosmos:KosmosConfig",
    "model.overrides: text_config": "kosmos.configuration_kosmos:KosmosTextConfig",
    "model.overrides: vision_config": "kosmos.encoder_configs:KosmosVisionConfig",
    "model.overrides: connector_config, span_connector_config": "kosmos.encoder_configs:KosmosConnectorConfig",
    "model.overrides: span_encoder_config": "kosmos.configuration_kosmos:KosmosSpanEncoderConfig",
}
WIDTH = 100  # of a line of code
PACKAGES = ("kosmos", "kosmos.tuning", "kosmos_data", "kosmos_train", "kosmos_eval")
# kosmos_eval exports no names of its own; its docstring calls these its doors.
DOORS = {
    "kosmos_eval": {
        "evaluate": ("evaluate", "evaluate_checkpoint"),
        "score": ("score_files",),
        "tasks": ("load",),
        "compare": ("compare_samples",),
        "report": ("report",),
        "gallery": ("gallery",),
    }
}


class _ParserFound(Exception):  # noqa: N818
    """Carries a command's parser out of the command."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def parsers() -> Iterator[argparse.ArgumentParser]:
    """The parser of every command and sub-command, in the order of ``kosmos --help``.

    A command builds its parser when it is called. So each is called, and stopped at the moment it would parse.
    """
    from kosmos.cli import VERBS
    from kosmos_eval.cli import USES

    for target, _ in VERBS.values():
        module, function = target.split(":")
        door = getattr(importlib.import_module(module), function)
        yield from _with_sub_commands(_stop_at_parser(door))
        if target == "kosmos_eval.cli:main":
            for use in USES.values():
                yield from _with_sub_commands(_stop_at_parser(use))


def _stop_at_parser(door: Any) -> argparse.ArgumentParser:
    def stop(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        raise _ParserFound(parser)

    # A command that does nothing without arguments prints its help instead of parsing.
    stops = dict.fromkeys(("parse_known_args", "parse_known_intermixed_args", "print_help"), stop)
    with mock.patch.multiple(argparse.ArgumentParser, **stops):
        try:
            door([])
        except _ParserFound as found:
            return found.parser
    raise AssertionError(f"{door} parses nothing")


def _with_sub_commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help for choice in action._choices_actions}
            for name, child in action.choices.items():
                child.description = child.description or helps.get(name)
                yield from _with_sub_commands(child)


def commands() -> str:
    """The page of commands."""
    parts = [
        "# Commands",
        "Generated from the commands themselves; `kosmos COMMAND --help` prints the same. `--debug` behind any command "
        "shows the traceback of an error.",
    ]
    return "\n\n".join(parts + [_command(parser) for parser in parsers()]) + "\n"


def _command(parser: argparse.ArgumentParser) -> str:
    """One command: what it does, its line, its arguments."""
    with mock.patch.dict("os.environ", {"COLUMNS": "100"}):
        usage = parser.format_usage().removeprefix("usage: ").strip()
    rows = [
        (_names(action), action.help % {**vars(action), "prog": parser.prog} if action.help else "")
        for action in parser._actions
        if action.help != argparse.SUPPRESS
        and action.dest != "help"
        and not isinstance(action, argparse._SubParsersAction)
    ]
    parts = [
        f"## {parser.prog}",
        markdown(parser.description or ""),
        f"```text\n{usage}\n```",
        _table(("argument", "meaning"), rows),
    ]
    parts += [f"```text\n{parser.epilog.strip()}\n```"] if parser.epilog else []
    return "\n\n".join(part for part in parts if part)


def _names(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    takes = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
    return ", ".join(f"`{name}{takes}`" for name in action.option_strings)


def settings() -> str:
    """The page of keys: of runs, parts, tasks, recipes, objectives and the model's configuration."""
    parts = [
        "# Keys of the YAML files",
        "Generated from the settings classes; `kosmos train --keys` prints the first table (`tune`, `tokenizer`, "
        "`vision`, `encoder`, `data web` and `data clean` have `--keys` too). On a command line a key is "
        "written `optim.lr=1e-4`; `sources[].name` stands in each entry of a list.",
    ]
    return "\n\n".join(parts + [_keys(title, cls) for title, cls in settings_classes()]) + "\n"


def settings_classes() -> Iterator[tuple[str, type]]:
    """Every settings class with its heading."""
    import yaml

    from kosmos_data import objectives, recipes

    for title, place in SETTINGS.items():
        module, name = place.split(":")
        yield title, getattr(importlib.import_module(module), name)
    for name in objectives.names():
        yield f"objective: {name}", objectives.kind(name)
    for name in recipes.known():
        builder = yaml.safe_load(recipes.find(name).read_text(encoding="utf-8"))["builder"]
        yield f"kosmos data make {name}", importlib.import_module(f"kosmos_data.recipes.{builder}").Options


def _keys(title: str, cls: type) -> str:
    from kosmos.keys import keys

    rows = [(f"`{key.path}`", f"`{key.kind}`", f"`{key.default}`", markdown(key.meaning)) for key in keys(cls)]
    first = markdown(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0])
    return "\n\n".join([f"## {title}", first, _table(("key", "type", "default", "meaning"), rows)])


def python() -> str:
    """The page of public classes and functions."""
    parts = ["# Python", "Generated from the docstrings."]
    for package in PACKAGES:
        module = importlib.import_module(package)
        parts += [f"## {package}", _docstring(module)]
        parts += [_object(name, value) for name, value in public(package)]
    return "\n\n".join(part for part in parts if part) + "\n"


def public(package: str) -> Iterator[tuple[str, Any]]:
    """The public names of a package with their objects."""
    module = importlib.import_module(package)
    for name in getattr(module, "__all__", ()):
        if not name.startswith("__"):
            yield f"{package}.{name}", getattr(module, name)
    for place, names in DOORS.get(package, {}).items():
        for name in names:
            yield f"{package}.{place}.{name}", getattr(importlib.import_module(f"{package}.{place}"), name)


def _object(name: str, value: Any) -> str:
    """A class with its own methods, or a function."""
    parts = [f"### {name}", _signature(name.rsplit(".", 1)[-1], value), _docstring(value)]
    if inspect.isclass(value):
        for method, member in vars(value).items():
            called = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
            shown = called.fget if isinstance(called, property) else called
            if method.startswith("_") or not inspect.isfunction(shown) or not shown.__doc__:
                continue
            code = f"`{method}`" if isinstance(called, property) else _signature(method, shown)
            parts += [f"#### {method}", code, _docstring(shown)]
    return "\n\n".join(part for part in parts if part)


def _signature(name: str, value: Any) -> str:
    """How it is called, without ``self``; a parameter a line where one line would be too long."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    given = [parameter for parameter in signature.parameters.values() if parameter.name != "self"]
    signature = signature.replace(parameters=given)
    text = name + _short(str(signature))
    if len(text) > WIDTH:
        end = text.rpartition(")")[2]
        stars = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in given)
        lines = []
        for parameter in given:
            if parameter.kind is parameter.KEYWORD_ONLY and not stars:
                lines.append("    *,\n")
                stars = True
            lines.append(f"    {_short(str(parameter))},\n")
        text = f"{name}(\n{''.join(lines)}){end}"
    return f"```python\n{text}\n```"


def _short(text: str) -> str:
    """Annotations without quotes and the modules of their names."""
    text = re.sub(r"(?:\w+\.)+(\w+)", r"\1", re.sub(r"'([\w.\[\]| ,]+)'", r"\1", text))
    return re.sub(r"<factory>|<object object at \w+>", "…", text)


def _docstring(value: Any) -> str:
    return markdown(inspect.cleandoc(value.__doc__ or ""))


def markdown(text: str) -> str:
    """A docstring of the house as Markdown: roles and double backticks become code, ``Args:`` and the rest lists."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")
    lines: list[str] = []
    section = code = False
    for line in text.splitlines():
        heading = re.fullmatch(r"(Args|Attributes|Raises|Returns|Yields):", line)
        if heading:
            section = True
            lines += ["", f"**{heading[1]}**", ""]
        elif section and (entry := re.match(r"    ([\w*][\w*, ]*): (.*)", line)):
            lines.append(f"- `{entry[1]}`: {_escaped(entry[2])}")
        elif section and line.startswith("    "):
            lines.append(f"  {_escaped(line.strip())}")
        else:
            section = section and not line.strip()
            code = line.startswith("    ") and (code or not lines or not lines[-1].strip())
            lines.append(line if code else _escaped(line))
    return "\n".join(lines).strip()


def _escaped(line: str) -> str:
    """A line with what Markdown would read as marks outside of code turned into text."""
    return "`".join(
        piece if number % 2 else re.sub(r"([*_\[\]])", r"\\\1", piece).replace("<", "&lt;")
        for number, piece in enumerate(line.split("`"))
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in [list(header), *cells]]
    return "\n".join([lines[0], "|" + " --- |" * len(header), *lines[1:]])
