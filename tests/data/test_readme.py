"""What the README and the recipe cards say is true."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

from kosmos import settings
from kosmos_data import Corpus, DataConfig, Image, Text, recipes
from kosmos_data.adapters import FORMATS


def test_ones_own_data_in_ten_lines(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_png: Callable[..., bytes]
) -> None:
    program = re.search(r"```python\n(.*?)```", (repository / "data/README.md").read_text(), re.DOTALL).group(1)
    assert len([line for line in program.splitlines() if line.strip()]) <= 10
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/dog.jpg").write_bytes(make_png(1))
    (tmp_path / "photos/dog.txt").write_text("A dog")
    (tmp_path / "program.py").write_text(program)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("program.py")
    (document,) = Corpus("corpora/photos")
    assert document.segments == [Image(make_png(1)), Text("A dog")]


def test_the_loaders_yaml_is_valid(repository: Path, tmp_path: Path) -> None:
    example = re.search(r"```yaml\n(.*?)```", (repository / "data/README.md").read_text(), re.DOTALL).group(1)
    (tmp_path / "run.yaml").write_text(example)
    config = settings.from_dict(DataConfig, settings.read_yaml(tmp_path / "run.yaml")["data"])
    assert [source.weight for source in config.sources] == [0.5, 0.5, 0.2]


def test_every_format_is_in_the_readme(repository: Path) -> None:
    text = (repository / "data/README.md").read_text()
    assert all(f"| `{name}` |" in text for name in FORMATS)


@pytest.mark.parametrize("name", recipes.known())
def test_every_recipe_has_a_card_and_a_header(repository: Path, name: str) -> None:
    folder = repository / "data/recipes"
    assert f"`kosmos data make {name}" in (folder / f"{name}.md").read_text()
    header = [line for line in (folder / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
    assert all(any(word in line for line in header) for word in ("command", "needs", "time", "writes"))
    assert settings.load(recipes.Recipe, recipes.find(name)).builder
