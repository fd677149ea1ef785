"""A modality is wired in one place: how many files of the library name that of text spans."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMES_IT = {
    "kosmos/modalities.py": "its entry",
    "kosmos/segments.py": "its segment",
    "kosmos/encoders.py": "its encoder",
    "kosmos/tokenization_kosmos.py": "its marks",
    "kosmos/configuration_kosmos.py": "its fields of config.json",
    "kosmos/processing_kosmos.py": "its fields of processor_config.json, its text in a prompt",
    "data/kosmos_data/objectives/semi_causal.py": "the objective that makes spans of text",
    "train/kosmos_train/config.py": "its keys of a run's YAML",
    "train/kosmos_train/parts/tokenizer.py": "its keys of a processor's YAML",
}
# Fields, arguments, attributes, keys and tokens of the modality. Documents and prompts are made of segments everywhere:
# that some part of the library makes a ``Span`` is no wiring.
WIRING = re.compile(
    r"SPAN|SPAN_(SLOT|BEGIN)|num_span_tokens|\w*SpanEncoder\w*|(encode|load|max|get)_span\w*"
    r"|span_(encoder|connector|input|attention|weights|slot|tokens|tokenizer|token_)\w*"
)


def strings_and_names(tree: ast.AST) -> Iterator[str]:
    """Identifiers, and strings that are no docstrings, of a module; the string "span" as the constant."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield "SPAN" if node.value == "span" else node.value
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.alias)):
            yield node.name
        elif isinstance(node, (ast.arg, ast.keyword)):
            yield node.arg or ""
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Name):
            yield node.id


def test_few_files_name_text_spans() -> None:
    found = set()
    for package in ("kosmos", "data/kosmos_data", "train/kosmos_train", "eval/kosmos_eval"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            names = strings_and_names(ast.parse(text)) if "span" in text.lower() else ()
            if any(WIRING.fullmatch(name) for name in names):
                found.add(path.relative_to(ROOT).as_posix())
    html = "data/kosmos_data/web/html/html_reader.py"  # there it is an element of a page
    assert found - {html} == NAMES_IT.keys()


COMMAND = re.compile(r"kosmos (?:chat|data|eval|merge|runs|serve|share|tokenizer|train|tune) [^;,`)…]*?\{([^{}]+)")
"""A command that a message advises, and the first value in it."""


def test_advised_commands_can_be_pasted() -> None:
    """A folder's name may hold blanks: what stands in such a command is one word of a shell."""
    found = 0
    for folder in ("kosmos", "data/kosmos_data", "eval/kosmos_eval", "train/kosmos_train"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.name == "model_card.py":  # a page, in which the name stands for the reader's own folder
                continue
            for line in path.read_text(encoding="utf-8").splitlines():
                for value in COMMAND.findall(line):
                    found += 1
                    assert "pasted(" in value or value == "named", f"{path}: {line.strip()}"
    assert found > 12
