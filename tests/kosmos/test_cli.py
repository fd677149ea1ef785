"""The command line: fast help, one line and exit code 2 for a user's mistake."""

from __future__ import annotations

import subprocess
import sys

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


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(FileNotFoundError):
        cli.main(["chat", "nowhere", "--debug"])


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "--help"])
    assert stop.value.code == 0
    assert len(capsys.readouterr().out) > 100
