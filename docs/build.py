"""The documentation site: ``make docs`` writes it to ``build/site``, with warnings as errors and without the network.

The pages keep the places that their files have in the repository, so that links work on the site as they do in a
checkout. Links to files that are no pages (sources, YAMLs) become the file's name.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import reference

ROOT = Path(__file__).resolve().parents[1]
READMES = ("README.md", "README.zh.md", "CHANGELOG.md", "CONTRIBUTING.md", "*/README.md")
GENERATED = {"commands": reference.commands, "keys": reference.settings, "python": reference.python}
LINK = re.compile(r"(!?)\[([^\]\n]*)\]\(([^)\s#]*)(#[^)\s]*)?\)")


def assemble(folder: Path) -> list[Path]:
    """Copy the pages and their pictures below ``folder`` and write the generated ones; return all pages.

    Raises:
        ValueError: a page links to something that does not exist.
    """
    shutil.rmtree(folder, ignore_errors=True)
    sources = [path for pattern in READMES for path in sorted(ROOT.glob(pattern))]
    sources += sorted(path for kind in ("*.md", "*.png") for path in (ROOT / "docs").rglob(kind))
    copied = {path.relative_to(ROOT) for path in sources} | {page_of(name) for name in GENERATED}
    for source in sources:
        target = folder / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".md":
            target.write_text(_linked(source, copied), encoding="utf-8")
        else:
            shutil.copyfile(source, target)
    for name, page in GENERATED.items():
        target = folder / page_of(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page(), encoding="utf-8")
    return sorted(folder.rglob("*.md"))


def page_of(name: str) -> Path:
    """Where the generated page ``name`` lies."""
    return Path("docs", "reference", f"{name}.md")


def _linked(source: Path, pages: set[Path]) -> str:
    """The text of a page, its links to what is not on the site turned into names."""

    def link(match: re.Match[str]) -> str:
        target = match[3]
        if not target or "://" in target:
            return match[0]
        path = Path(os.path.normpath(source.parent.relative_to(ROOT) / target))
        if path in pages:
            return match[0]
        if not (ROOT / path).exists():
            raise ValueError(f"{source.relative_to(ROOT)}: no {target}, to which it links")
        return f"`{path}`"

    # Code blocks stay as they are: what looks like a link there is none.
    parts = re.split(r"(^```.*?^```)", source.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return "".join(part if number % 2 else LINK.sub(link, part) for number, part in enumerate(parts))


def build(pages: Path, site: Path) -> None:
    """Build the site ``site`` from assembled ``pages``.

    Raises:
        mkdocs.exceptions.Abort: a warning: a page that is in no menu, a link to nowhere.
    """
    from mkdocs.commands.build import build as build_site
    from mkdocs.config import load_config

    os.environ["DISABLE_MKDOCS_2_WARNING"] = "true"  # an advertisement of the theme, no warning about the pages
    here = str(ROOT / "docs" / "mkdocs.yml")
    build_site(load_config(here, docs_dir=str(pages), site_dir=str(site), strict=True))


def main() -> int:
    """Assemble the pages and build the site in ``build/``."""
    folder = ROOT / "build"
    assemble(folder / "docs")
    build(folder / "docs", folder / "site")
    return 0


if __name__ == "__main__":
    sys.exit(main())
