"""WARC files → shards: what is in them, and the same bytes for any tasks and workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kosmos_data import Corpus, Image, Text
from kosmos_data.check import check_corpus
from kosmos_data.cli import main as cli
from kosmos_data.web import stages
from kosmos_data.web.draft import page_key
from kosmos_data.web.ledger import IMAGES, PAGES, PARAGRAPHS, RECORDS, read_ledger
from kosmos_data.web.ledger_report import write_report
from kosmos_data.web.options import WebOptions
from kosmos_data.web.page import url_name
from kosmos_data.web.pipeline import run
from kosmos_data.web.rules import SOURCES, ImageRules
from kosmos_data.web.selection import is_drawn

pytest.importorskip("fastwarc")
pytest.importorskip("datatrove")


from kosmos_data.web.warc import WarcWriter

MakeOptions = Callable[..., WebOptions]
Files = Callable[[Path], dict[str, bytes]]


def test_every_page_and_image_ends_where_it_must(web: Any, made: Path) -> None:
    ledger = read_ledger(made)
    ledger.check()
    drawn = {url for url in web.singles if is_drawn(page_key(url).encode(), 0.5)}
    assert 0 < len(drawn) < len(web.singles)
    pages = web.pages | {"one image, not drawn": len(web.singles) - len(drawn)}
    assert {reason: rule.count for _, reason, rule in ledger.dropped(PAGES)} == pages
    images = {reason: rule.count for _, reason, rule in ledger.dropped(IMAGES)}
    for reason, count in web.images.items():
        assert images.pop(reason) == count, reason
    assert list(images) == ["its page was dropped"] * bool(images)
    assert all(reason in SOURCES for reason in web.pages | web.images if reason not in ("not HTML", "image missing"))

    corpus = Corpus(made)
    assert {document.meta["url"] for document in corpus} == web.kept | drawn
    assert (ledger.kept[PAGES], ledger.kept[IMAGES]) == (len(corpus), sum(len(d.images) for d in corpus))
    assert ledger.kept[PARAGRAPHS] == sum(len(document.text.split("\n")) for document in corpus)
    assert ledger.entered[RECORDS] == ledger.entered[PAGES] + 1  # the style sheet
    assert [shard.documents for shard in corpus.shards] == [6] * (len(corpus) // 6) + [len(corpus) % 6]
    assert [document.key for document in corpus] == sorted(document.key for document in corpus)
    assert all(report.good for report in check_corpus(made))
    assert not (made / "work" / "documents").exists()


def test_documents_are_the_pages_in_reading_order(web: Any, made: Path, paragraphs: Callable[..., list[str]]) -> None:
    documents = {document.meta["url"].rsplit("/", 1)[-1]: document for document in Corpus(made)}
    expected = paragraphs(5)
    plain = documents["plain5"]  # text logo text image text image text, without the logo
    assert [s.text for s in plain.segments if isinstance(s, Text)] == ["\n".join(expected[:2]), *expected[2:]]
    assert [s.data for s in plain.segments if isinstance(s, Image)] == [
        web.bytes_of[f"http://images.example/{50 + at}.png"] for at in range(2)
    ]
    assert [type(segment) for segment in plain.segments] == [Text, Image, Text, Image, Text]
    assert plain.meta == {
        "url": "http://site.example/plain5",
        "title": "Page plain5",
        "images": [{"url": f"http://images.example/{50 + at}.png", "alt": str(at + 1)} for at in range(2)],
    }
    assert [image.data for image in documents["seven"].images] == [
        web.bytes_of[f"http://images.example/{1000 + at}.png"] for at in range(5)
    ]
    assert documents["plain4"].images  # the capture with more images was kept
    assert len(documents["copier"].images) == 2  # the smaller copy went
    assert len(documents["original"].images) == 2


@pytest.mark.parametrize(("tasks", "workers"), [(2, 1), (3, 2)])
def test_tasks_and_workers_change_no_byte(
    web: Any, made: Path, tmp_path: Path, tasks: int, workers: int, options: MakeOptions, files: Files
) -> None:
    run(list(reversed(web.warcs)), tmp_path / "out", options(tasks, workers=workers))
    assert files(tmp_path / "out") == files(made)


def test_a_finished_run_is_not_made_again_and_another_is_refused(
    web: Any, made: Path, tmp_path: Path, options: MakeOptions
) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    ledger = run(web.warcs, made, options(tasks=1, workers=2))  # what decides no byte may change
    assert ledger is not None
    assert ledger.to_json() == (made / "ledger.json").read_text()
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before
    with pytest.raises(ValueError, match="other options"):
        run(web.warcs, made, WebOptions(tasks=1, images=ImageRules(min_side=9)))
    with pytest.raises(ValueError, match="other tasks"):
        run(web.warcs, made, options(tasks=2))
    with pytest.raises(ValueError, match="other warcs"):
        run(web.warcs[:2], made, options(tasks=1))
    (tmp_path / "a file").touch()
    with pytest.raises(ValueError, match="not empty"):
        run(web.warcs, tmp_path)
    with pytest.raises(ValueError, match="given twice"):
        run([*web.warcs, web.warcs[0]], tmp_path / "out")
    with pytest.raises(ValueError, match="no WARC"):
        run([], tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="missing"):
        run([tmp_path / "missing.warc"], tmp_path / "out")


def test_images_that_were_fetched_make_the_same_corpus(
    web: Any, made: Path, tmp_path: Path, options: MakeOptions, files: Files
) -> None:
    with pytest.raises(ValueError, match=r"images were nowhere: kosmos data fetch .*missing_images.txt"):
        run([web.bare], tmp_path / "first", options(workers=1))
    missing = (tmp_path / "first" / "missing_images.txt").read_text().splitlines()
    assert missing == sorted(missing)
    nowhere = (made / "missing_images.txt").read_text().splitlines()
    assert nowhere == ["http://images.example/nowhere.png"]
    assert set(missing) < {*web.bytes_of, *nowhere}  # images of pages whose text is bad are not asked for
    (tmp_path / "pictures").mkdir()
    for url in set(missing) - set(nowhere):
        (tmp_path / "pictures" / url_name(url)).write_bytes(web.bytes_of[url])
    chosen = options(workers=1)
    chosen.image_folder = str(tmp_path / "pictures")
    run([web.bare], tmp_path / "out", chosen)
    assert files(tmp_path / "out") == files(made)
    chosen.image_folder = str(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="nothing"):
        run([web.bare], tmp_path / "third", chosen)


def test_many_lists_are_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_OPEN_FILES", 3)
    for number in range(10):
        lines = sorted({f"{(number * 7 + at * 3) % 11:02d}\n" for at in range(4)})
        (tmp_path / f"{number}.txt").write_text("".join(lines))
    stages._merge_lines(sorted(tmp_path.glob("*.txt")), tmp_path / "all")
    assert (tmp_path / "all").read_text().split() == [f"{number:02d}" for number in range(11)]
    assert len(list(tmp_path.iterdir())) == 11


def test_no_page_left_is_an_error_with_a_ledger(
    tmp_path: Path,
    options: MakeOptions,
    paragraphs: Callable[..., list[str]],
    html_page: Callable[..., bytes],
) -> None:
    with WarcWriter(tmp_path / "a.warc.gz") as writer:
        writer.write("http://x.example/", "text/html", html_page("T", paragraphs(1), []))
    with pytest.raises(ValueError, match="no page of 1 was left"):
        run([tmp_path / "a.warc.gz"], tmp_path / "out", options(workers=1))
    (tmp_path / "notes.txt").write_text("no archive")
    with pytest.raises(ValueError, match=r"no page in .*notes.txt: is this a WARC file"):
        run([tmp_path / "notes.txt"], tmp_path / "none", options(workers=1))
    assert read_ledger(tmp_path / "out").count(PAGES, "no image") == 1
    assert "no image" in write_report(tmp_path / "out").read_text()


def test_commands_make_and_report(
    web: Any, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], files: Files
) -> None:
    config = tmp_path / "web.yaml"
    config.write_text("tasks: 1\ndocuments_per_shard: 6\nimages: {min_side: 70}\n")
    out = tmp_path / "out"
    words = [
        *map(str, web.warcs),
        "images.min_side=64",
        "--out",
        str(out),
        "--config",
        str(config),
        "execution.workers=1",
    ]
    assert cli(["web", *words]) == 0
    assert files(out) == files(made)
    assert "on too many pages" in capsys.readouterr().out
    assert cli(["report", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "OBELICS" in printed
    assert "report.html" in printed.replace("\n", "")
    with pytest.raises(ValueError, match="did you mean 'min_side'"):
        cli(["web", *map(str, web.warcs), "--out", str(tmp_path / "b"), "images.min_sid=64"])
