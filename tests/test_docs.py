"""The site builds strictly and without the network, holds every command, key and public name, and says what is so."""

from __future__ import annotations

import importlib
import re
import shlex
import socket
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HERE / "docs"))

import build  # noqa: E402
import reference  # noqa: E402

from kosmos.cli import VERBS, main  # noqa: E402
from kosmos.keys import field_meanings, keys  # noqa: E402

CODE = re.compile(r"^```(?:sh|bash|console|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)
WORDS = r"(?:kosmos|make|pip|hf|python)"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The assembled pages."""
    folder = tmp_path_factory.mktemp("site") / "docs"
    assert len(build.assemble(folder)) > 15
    return folder


@pytest.fixture(scope="module")
def parsers() -> dict[str, ArgumentParser]:
    """The parser of every command by the words that call it."""
    return {parser.prog: parser for parser in reference.parsers()}


def test_the_site_builds_strictly_without_the_network(
    pages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exceptions = pytest.importorskip("mkdocs.exceptions", reason="mkdocs is not installed: pip install -e '.[docs]'")
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the build asked the network"))
    site = pages.parent / "site"
    build.build(pages, site)
    html = [path.read_text(encoding="utf-8") for path in site.rglob("*.html")]
    assert len(html) > 15
    fetched = [
        found
        for page in html
        for found in re.findall(r'(?:<script[^>]*src|<link[^>]*href|<img[^>]*src)="(http[^"]*)', page)
    ]
    assert not fetched
    (tmp_path / "README.md").write_text("a page alone, and a menu that names others")
    with pytest.raises(exceptions.Abort):
        build.build(tmp_path, tmp_path / "site")


def test_a_link_to_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_text("[x](gone.py)")
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(build, "ROOT", tmp_path)
    with pytest.raises(ValueError, match=r"README\.md: no gone\.py"):
        build.assemble(tmp_path / "out")


def test_every_command_and_option_is_on_its_page(pages: Path, parsers: dict[str, ArgumentParser]) -> None:
    text = (pages / build.page_of("commands")).read_text()
    assert {f"kosmos {verb}" for verb in VERBS} <= parsers.keys()
    for command, parser in parsers.items():
        section = text.split(f"\n## {command}\n")[1].split("\n## ")[0]
        for action in parser._actions:
            assert action.option_strings[:1] == ["-h"] or all(name in section for name in action.option_strings)


def test_every_key_is_on_its_page_with_its_meaning(pages: Path) -> None:
    text = (pages / build.page_of("keys")).read_text()
    count = 0
    for title, cls in reference.settings_classes():
        section = text.split(f"\n## {title}\n")[1].split("\n## ")[0]
        for key in keys(cls):
            assert f"| `{key.path}` |" in section
            assert key.meaning, (title, key.path)
            count += 1
    assert count > 400


def test_keys_in_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from kosmos_train.config import TrainConfig

    for verb in ("train", "tune", "tokenizer", "vision", "encoder"):
        with pytest.raises(SystemExit) as left:
            main([verb, "--keys"])
        assert left.value.code == 0
        printed = capsys.readouterr().out.splitlines()
        if verb in ("train", "tune"):
            assert [line.split(":")[0] for line in printed if not line.startswith(" ")] == [
                key.path for key in keys(TrainConfig)
            ]
    assert "optim.lr: float = 0.0002" in _keys_of("kosmos_train.config:TrainConfig")


def _keys_of(place: str) -> str:
    module, name = place.split(":")
    return "\n".join(line for key in keys(getattr(importlib.import_module(module), name)) for line in key.lines())


def test_meanings_stand_below_a_field_or_in_the_docstring() -> None:
    from kosmos_data.config import DataConfig
    from kosmos_eval.tasks import Decoding
    from kosmos_train.config import OptimConfig

    assert field_meanings(OptimConfig)["lr"] == "Peak learning rate."
    assert field_meanings(DataConfig)["row_tokens"] == "T, tokens per row."
    meanings = field_meanings(Decoding)  # several entries in one line, several names in one entry
    assert (
        meanings["num_beams"]
        == meanings["length_penalty"]
        == "for ``beam`` (KOSMOS-1: 5 for captions, 2 for ImageNet)."
    )


def test_every_public_name_is_on_its_page(pages: Path) -> None:
    text = (pages / build.page_of("python")).read_text()
    for package in reference.PACKAGES:
        names = [name for name, _ in reference.public(package)]
        assert names
        for name, value in reference.public(package):
            assert f"\n### {name}\n" in text
            assert value.__doc__, name


def test_a_docstring_becomes_markdown() -> None:
    doc = "Return :class:`~a.B` of ``<image>`` in <p>.\n\nArgs:\n    x, y: first\n        line.\n\n"
    doc += "Raises:\n    OSError: no."
    assert reference.markdown(doc) == (
        "Return `a.B` of `<image>` in &lt;p>.\n\n\n**Args**\n\n- `x, y`: first\n  line.\n\n\n"
        "**Raises**\n\n- `OSError`: no."
    )


def _written(text: str) -> Iterator[list[str]]:
    """The words of every kosmos command in a page's blocks and inline code."""
    blocks = "\n".join(CODE.findall(text)).replace("\\\n", " ")
    lines = [line.strip().removeprefix("$ ") for line in blocks.splitlines()]
    lines += re.findall(r"`(kosmos [^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    for line in lines:
        found = re.match(r"(?:\.venv/bin/)?(kosmos\s.*)", line)
        if found:
            yield shlex.split(found[1], comments=True)


def test_commands_in_the_pages_exist(pages: Path, parsers: dict[str, ArgumentParser]) -> None:
    written = [(page, words) for page in pages.rglob("*.md") if "reference" not in page.parts
               for words in _written(page.read_text(encoding="utf-8"))]  # fmt: skip
    assert len(written) > 120
    for page, words in written:
        if page.name == "CHANGELOG.md" or not re.fullmatch(r"[a-z]+", words[1]):  # history; COMMAND stands for any
            continue
        name = next((" ".join(words[:n]) for n in (3, 2) if " ".join(words[:n]) in parsers), None)
        assert name, f"{page.name}: {' '.join(words)}"
        known = {option for action in parsers[name]._actions for option in action.option_strings} | {"--debug"}
        used = {word.split("=")[0] for word in words if word.startswith("--")}
        assert used <= known or name == "kosmos eval lm-eval", f"{page.name}: {' '.join(words)}"


def test_the_readme_of_a_package_names_its_files() -> None:
    packages = {
        "kosmos": "kosmos",
        "data": "data/kosmos_data",
        "eval": "eval/kosmos_eval",
        "train": "train/kosmos_train",
    }
    python = {path.name for top in (*packages, "tests") for path in (HERE / top).rglob("*.py")}
    for top, package in packages.items():
        named = set(re.findall(r"\b[a-z]\w*\.py\b", (HERE / top / "README.md").read_text(encoding="utf-8")))
        files = {path.name for path in (HERE / package).glob("*.py")} - {"__init__.py", "__main__.py"}
        assert len(files) > 20
        assert not files - named, f"{top}/README.md does not name"
        assert not named - python, f"{top}/README.md names what is gone"


def test_both_readmes_say_the_same() -> None:
    english, chinese = ((HERE / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md"))
    assert "(README.zh.md)" in english
    assert "(README.md)" in chinese
    assert CODE.findall(english) == CODE.findall(chinese)
    for pattern in (rf"`((?:\. )?[./\w]*{WORDS}[^`\n]*)`", r"^#+ ", r"\]\(((?!README)[^)]+)\)", r"\d[\d.,]*\d"):
        found = [sorted(re.findall(pattern, text, re.MULTILINE)) for text in (english, chinese)]
        assert found[0] == found[1], pattern
    assert len(re.findall("[\u4e00-\u9fff]", chinese)) > 1000


def test_the_messages_under_troubleshooting_are_printed_by_something(pages: Path) -> None:
    rows = re.findall(
        r"^\| (`.*?) \|", (pages / "docs" / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    sources = [path for top in ("kosmos", "data", "train", "eval") for path in (HERE / top).rglob("*.py")]
    code = "".join(path.read_text(encoding="utf-8") for path in [*sources, HERE / "Makefile"])
    code = re.sub(r'"\s*\n\s*f?"', "", code).replace("{INDEX_NAME}", "index.json")
    for row in rows:
        for message in re.findall(r"`([^`]+)`", row):
            for part in re.split("…| [?]", message):
                if len(part.strip()) > 3 and part.strip() not in OTHERS:
                    assert part.strip().strip(",") in code, message


OTHERS = (  # Python's; one of several; transformers' own
    *("No module named pip", ".venv", "is not installed; pip install -e '.[web]'", "Server is pinned to 'kosmos'"),
)
