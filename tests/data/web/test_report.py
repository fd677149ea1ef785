"""The page of the report shows every example, loads nothing and escapes what pages say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kosmos_data import Corpus
from kosmos_data.web.ledger import IMAGES, KINDS, PAGES, Ledger, read_ledger
from kosmos_data.web.ledger_report import write_report

pytest.importorskip("fastwarc")
pytest.importorskip("datatrove")


def test_the_page_of_the_report_shows_everything_and_loads_nothing(made: Path) -> None:
    page = write_report(made).read_text(encoding="utf-8")
    ledger = read_ledger(made)
    for kind in KINDS:
        for _, reason, rule in ledger.dropped(kind):
            assert f"{reason}</span>" in page
            for _, example in rule.examples:
                assert example.get("url", "") in page
    assert page.count('<img src="data:image/webp') == sum(len(Corpus(made)[n].images) for n in range(9))
    assert not re.findall(r"(?:src|href)=[\"'](?!data:image/)", page)
    assert "default-src 'none'" in page
    assert "<script" not in page
    (made / "index.json").rename(made / "elsewhere.json")  # the shards were moved: the page stays
    assert write_report(made).read_text(encoding="utf-8") == page
    (made / "elsewhere.json").rename(made / "index.json")
    (made / "report.html").unlink()


def test_what_a_page_says_is_escaped_in_the_report(tmp_path: Path) -> None:
    ledger = Ledger()
    ledger.enter(PAGES)
    ledger.enter(IMAGES)
    evil = "\"><script>alert('x')</script>"
    ledger.drop(PAGES, "text", f"<b>{evil}", evil, lambda: {"url": evil, "title": evil, "text": evil, "detail": evil})
    ledger.drop(
        IMAGES, "images", "too small", evil, lambda: {"url": evil, "page": evil, "size": [1, 1], "detail": evil}
    )
    ledger.write(tmp_path)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 7
