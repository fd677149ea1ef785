"""Text is text: markup, emoji names and cursor sequences of others are printed as they were written, by every door."""

from __future__ import annotations

import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kosmos import cli, settings
from kosmos.loading import find_folder
from kosmos.plain import LONGEST, escape, one_line, printable, styled
from kosmos.tables import show
from kosmos_data import Document, Text
from kosmos_data.cli import main as data
from kosmos_data.inspection import show_document
from kosmos_eval import results, tasks
from kosmos_eval.readers import load_items

SEEDS = int(os.environ.get("KOSMOS_SEEDS", "64")) // 8
PIECES = ["[bold]", "[/bold]", "[/x]", "[link=https://x.y]", "[red", "]", "\\", "\\[b]", ":smile:", ":x:", "[[a]]", "a"]
PIECES += ["[@click=app.quit]", "[1]", "[/]", "\x1b[2J", "\x1b]0;t\x07", "\r", "\x9b31m", "ü", "日", "\u202e", "\ud800"]
CURSOR = set(map(chr, [*range(0x20), *range(0x7F, 0xA0)])) - {"\n", "\t"}


def odd(seed: int) -> str:
    rng = random.Random(seed)
    return "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 6))).strip() or "a"


def printed(door: Callable[[Console], Any], width: int = 400) -> str:
    """What a door prints on a console as the commands make it."""
    file = io.StringIO()
    door(Console(file=file, width=width, emoji=False, color_system=None, soft_wrap=True))
    return file.getvalue()


def row(text: str) -> dict[str, Any]:
    names = {"task": text, "model": text, "metric": text, "context": text}
    return {**names, "shots": 0, "value": 0.5, "low": 0.4, "high": 0.6, "n": 3, "baselines": {text: 0.1}}


@pytest.mark.parametrize("width", [400, 30])
def test_tables_and_documents(width: int, tmp_path: Path) -> None:
    for seed in range(SEEDS * 2):
        text = odd(seed)
        wanted = printable(text)
        shown = printed(lambda console, text=text: show(console, results.table([row(text)])), width)
        assert not CURSOR & set(shown), seed
        if width == 400:
            assert shown.count(wanted) >= 4, (seed, text, shown)
        document = Document("key", [Text(text.encode("utf-8", "replace").decode())])
        shown = printed(lambda console, text=text, document=document: show_document(console, text, document))
        assert wanted in shown, (seed, text, shown)
        assert not CURSOR & set(shown), seed


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names of folders, keys and reasons as ``kosmos data`` and ``kosmos runs`` print them; messages of errors too."""
    for seed in range(SEEDS):
        text = odd(seed).replace("/", "|").encode("utf-8", "replace").decode()
        folder = tmp_path / f"{seed} {text}"
        folder.mkdir()
        (folder / "t.jsonl").write_text(json.dumps({"text": "a"}) + "\n" + json.dumps({text: 1}) + "\n", "utf-8")
        data(["import", "text", str(folder / "t.jsonl"), "--out", str(folder / "out")])
        data(["inspect", str(folder / "out")])
        data(["check", str(folder / "out")])
        (folder / "metrics.jsonl").write_text(
            json.dumps({"step": 1, "loss": 1.0, "eval_tasks": {text: {"acc": 1.0}}}) + "\n"
        )
        assert cli.main(["runs", "scores", str(folder)]) == 0
        assert cli.main([text]) == 2
        assert cli.main(["runs", "list", str(folder / text / "none")]) == 2
        found = capsys.readouterr()
        assert not CURSOR & set(found.out + found.err), (seed, text)
        first = next(line for line in found.out.splitlines() if "1 document, " in line)
        assert printable(str(folder / "out")) in first, (seed, first)


def test_help_of_a_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["help", "data"])
    assert cli.main(["data"]) == 2
    found = capsys.readouterr()
    for text in (found.out, found.err):
        assert "import" in text
        assert "``" not in text


def test_one_line() -> None:
    assert one_line("a\n  b\x1b[2J\ud800") == "a b�[2J?"
    assert len(one_line("x" * 10**7)) == LONGEST
    assert escape("[b]\x07") == "\\[b]�"
    for text in ("\\[1]", "a\\", "\\\\", "\\[b]", "[", "\\[", "\\\\[1]\\"):
        assert printed(lambda console, text=text: console.print(styled("bold", text) + "!")) == f"{text}!\n"


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "aliases stand for more than 1,000,000 values"),
        ("a: &a [*a]", "aliases stand for more than"),
        ("a: " + "[" * 3000, "not valid YAML"),
        ("a: !!python/object/apply:os.system ['x']", "could not determine a constructor"),
        ("a: \x00", "not valid YAML"),
        ("a: [" + "1," * 10**6 + "1]", "more than 262,144 characters"),
    ],
)
def test_bombs_in_yaml(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        settings.read_yaml(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("a: &a [1, 2]\nb: [*a, *a]")
    assert settings.read_yaml(tmp_path / "a.yaml") == {"a": [1, 2], "b": [[1, 2], [1, 2]]}


def test_a_persona_too_deep(tmp_path: Path) -> None:
    from kosmos.chat import read_persona

    (tmp_path / "p.json").write_text("[" * 10**5)
    with pytest.raises(ValueError, match="not valid JSON"):
        read_persona(tmp_path / "p.json")


@pytest.mark.parametrize("name", ["../../etc", "/etc", "", "a/b", "\0", "x" * 10**5, "\xff"])
def test_latest_names_a_folder_beside_it(name: str, tmp_path: Path) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    for folder in (checkpoints / "step-1", tmp_path, checkpoints / "a" / "b"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text("{}")
    (checkpoints / "latest").write_bytes(name.encode("latin-1"))
    assert find_folder(tmp_path / "run", "config.json") is None
    (checkpoints / "latest").write_text("step-1\n")
    assert find_folder(tmp_path / "run", "config.json") == checkpoints / "step-1"


@pytest.mark.parametrize(
    "form", ["{question:>999999999}", "{question.__class__}", "{question[0]}", "{question:{question}}"]
)
@pytest.mark.parametrize("key", ["prompt.template", "prompt.answer", "rationale"])
def test_a_template_holds_names_of_fields(form: str, key: str) -> None:
    with pytest.raises(ValueError, match=f"{key} .*(no field's name|more than 99 characters)"):
        tasks.load("vqa", [f"{key}={form} {{answer}}"])


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../secret.png"])
def test_images_of_a_data_set_lie_in_its_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "secret.png").write_bytes(b"x")
    (tmp_path / "data" / "test.jsonl").write_text(json.dumps({"images": [name], "answers": ["x"], "question": "?"}))
    changes = ["dataset.format=jsonl", "dataset.annotations={split}.jsonl", "dataset.images={file_name}", "split=test"]
    with pytest.raises(ValueError, match="lies outside of the data folder"):
        load_items(tasks.load("vqa", [*changes, "demonstrations.split="]), tmp_path / "data", "test")
