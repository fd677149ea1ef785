"""The command line: fast help, one line and exit code 2 for a user's mistake."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from kosmos import cli

HEAVY = ("torch", "transformers", "deepspeed", "open_clip", "timm", "webdataset")


def test_importing_kosmos_and_help_import_nothing_heavy() -> None:
    """Nor does what looks at a corpus."""
    program = "import sys, kosmos, kosmos.cli, kosmos_data.inspection; kosmos.cli.main(['--help'])\n"
    program += f"print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(verb in done.stdout for verb in cli.VERBS)


def test_an_unknown_command_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evla"]) == 2
    assert "did you mean 'eval'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chat", "nowhere"], "nowhere: no such folder"),
        (["train", "nowhere.yaml", "run=x"], "nowhere.yaml: no such settings file"),
        (["data", "inspect", "nowhere"], "nowhere"),
        (["vision", "nowhere.yaml", "run=x"], "nowhere.yaml"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_closed_streams_end_no_command(tmp_path: Path) -> None:
    """``>&- 2>&- <&-``, as daemons are started: what is written goes nowhere, and no file of ours takes its number."""
    (tmp_path / "a.jsonl").write_text('{"text": "a dog"}\n')
    program = "import sys; from kosmos.cli import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", program, "data", "import", "text", "a.jsonl", "--out"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for out, code in (("out", 0), ("out", 2)):  # the second time it is there
        done = subprocess.run(
            ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *words, out], cwd=tmp_path, env=environment, check=False
        )
        assert done.returncode == code
    (shard,) = (tmp_path / "out").glob("*.tar")
    with tarfile.open(shard) as tar:
        assert tar.getnames() == ["a-00000000.json"]


@pytest.mark.parametrize("words", [["--help"], ["data", "check", "out"]])
def test_a_full_disk_behind_the_output(tmp_path: Path, words: list[str]) -> None:
    """What was printed cannot be kept: one line, and no second complaint as Python ends."""
    from kosmos_data import Document, Text, write_shards

    write_shards(tmp_path / "out", [Document("a", [Text("a dog")])])
    program = "import sys; from kosmos.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program, *words],
            stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "kosmos: [Errno 28] No space left on device\n"


@pytest.mark.parametrize("body", ["bytearray(1 << 60)", "__import__('torch').empty(1 << 50)"])
def test_too_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], body: str
) -> None:
    (tmp_path / "greedy_door.py").write_text(f"def main(argv):\n    return {body}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "greedy_door", raising=False)
    assert cli.call("greedy_door:main", []) == 2
    said = capsys.readouterr().err
    assert said.startswith("kosmos: out of memory")
    assert said.count("\n") == 1


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(FileNotFoundError):
        cli.main(["chat", "nowhere", "--debug"])


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "--help"])
    assert stop.value.code == 0
    assert len(capsys.readouterr().out) > 100
