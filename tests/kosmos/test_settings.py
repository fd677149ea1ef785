"""Settings: YAML and overrides become typed dataclasses; every mistake is named with its place."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from kosmos import settings


@dataclass
class Source:
    name: str
    weight: float = 1.0


@dataclass
class Optim:
    lr: float = 1e-3
    steps: int = 10


@dataclass
class Run:
    optim: Optim = field(default_factory=Optim)
    sources: list[Source] = field(default_factory=list)
    note: str | None = None


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def test_yaml_and_overrides_fill_the_dataclass(tmp_path: Path) -> None:
    path = write(tmp_path, "optim: {lr: 0.1}\nsources: [{name: a, weight: 2}]\n")
    run = settings.load(Run, path, ["optim.lr=2e-4", "optim.steps=7", "note=hello"])
    assert run == Run(Optim(2e-4, 7), [Source("a", 2.0)], "hello")


def test_written_settings_read_back_equal(tmp_path: Path) -> None:
    run = Run(Optim(0.5, 3), [Source("ä", 0.25)], None)
    settings.write_yaml(run, tmp_path / "out.yaml")
    assert settings.load(Run, tmp_path / "out.yaml") == run


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("optim: {learning: 1}", [], "unknown key 'optim.learning'"),
        ("opitm: {lr: 1}", [], "did you mean 'optim'"),
        ("sources: [{nme: a}]", [], "did you mean 'name'"),
        ("optim: {lr: fast}", [], "fast"),
        ("optim: {steps: 1.5}", [], "1.5"),
        ("optim: [1", [], "not valid YAML"),
        ("- 1", [], "found a list"),
        ("optim: {lr: 1}\nsources: []\noptim: {lr: 2}", [], "the key 'optim' is said twice"),
        ("optim: {lr: 1, lr: 1}", [], "the key 'lr' is said twice"),
        ("", ["optim.lr"], "not of the form key=value"),
        ("", ["optim.lrr=1"], "did you mean 'lr'"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")) as error:
        settings.load(Run, write(tmp_path, text), overrides)
    if not overrides:
        assert "run.yaml" in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.yaml"):
        settings.load(Run, tmp_path / "nothing.yaml")


def test_an_empty_override_is_an_empty_text_and_yes_must_be_quoted() -> None:
    from kosmos_train.config import ModelConfig

    assert settings.load(ModelConfig, None, ["preset="]).preset == ""
    assert settings.load(ModelConfig, None, ["preset=null"]).preset is None
    with pytest.raises(ValueError, match="yes, no, on and off as true and false: quote them"):
        settings.from_dict(ModelConfig, {"freeze": [True]})


def test_one_reading_leaves_nothing_to_the_next() -> None:
    """The parser of a class is made once: neither a default that was changed nor a mistake stays in it."""
    first = settings.from_dict(Run, {"note": "mine"})
    first.sources.append(Source("a"))
    first.optim.steps = 99
    with pytest.raises(ValueError, match="lr"):
        settings.from_dict(Run, {"optim": {"lr": "fast"}})
    assert settings.from_dict(Run, {}) == Run()


def test_the_fast_reader_reads_what_pyyaml_reads(repository: Path, tmp_path: Path) -> None:
    """All settings of the project; what is wrong is shown with its line, which libyaml does not do."""
    files = sorted((repository / "train" / "configs").rglob("*.yaml"))
    assert len(files) > 20
    for path in files:
        assert settings.read_yaml(path) == yaml.safe_load(path.read_text(encoding="utf-8")), path
    with pytest.raises(ValueError, match=r"a: \[1, 2 \^ expected ',' or '\]', but got ':'"):
        settings.read_yaml(write(tmp_path, "a: [1, 2\nb: 3"))
