"""Recipe docs: a manual becomes WARC, goes the whole path of web pages, and is split by page."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("fastwarc")
pytest.importorskip("datatrove")

from kosmos_data import Corpus, Image, Text, recipes
from kosmos_data.recipes import docs, packages
from kosmos_data.recipes.splits import held_out
from kosmos_data.web import warc

WORDS = """the of and that with have about water people house small large under between morning evening river
mountain picture colour brush paper window street children because although before after never
always nothing something wrote painted showed carried opened followed remembered quiet yellow narrow
ancient heavy careful sudden early every other another while where through across against market
garden winter summer letter music bridge island kitchen teacher farmer sailor"""


def page(number: int) -> str:
    """A page as DocBook writes it, with navigation, two images and words that no other page has."""
    rng = random.Random(number)
    text = ". ".join(" ".join(rng.sample(WORDS.split(), 9)).capitalize() for _ in range(14))
    return (
        f"<html><head><title>{number}. Page</title></head><body>"
        '<div class="navheader"><a href="x.html">Prev</a> <img src="images/next.png"></div>'
        f'<h2>{number}. Page</h2><p>{text}</p><p>Figure {number}</p><img src="images/a {number}+b.png" alt="one">'
        f'<p>To be read with the following.</p><img src="images/{number}.png"></body></html>'
    )


@pytest.fixture(scope="module")
def manual(tmp_path_factory: pytest.TempPathFactory, make_png: Callable[..., bytes]) -> Path:
    """What a package unpacks to: forty pages, and two that are none."""
    files = tmp_path_factory.mktemp("package")
    folder = files / docs.MANUALS["gimp-help"].folder
    (folder / "images").mkdir(parents=True)
    for number in range(40):
        (folder / f"page{number}.html").write_text(page(number))
        (folder / f"images/a {number}+b.png").write_bytes(make_png(2 * number, (80, 70)))
        (folder / f"images/{number}.png").write_bytes(make_png(2 * number + 1, (80, 70)))
    (folder / "images/next.png").write_bytes(make_png(999, (16, 16)))
    (folder / "index.html").write_text("<p>An index page without any image.</p>")
    (folder / "broken.html").write_bytes(bytes(100))
    (folder / "style.css").write_text("p {}")
    (files.parent / "record.json").write_text(json.dumps({"version": "1"}))
    return files


@pytest.fixture(scope="module")
def made(manual: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("docs") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packages, "apt", lambda *_, **__: manual)
        patch.setattr(packages, "describe", lambda _: {"name": "gimp-help-en", "version": "1"})
        recipes.make("docs", out, ["manuals=[gimp-help]", "held_out_every=4", "workers=1", "documents_per_shard=7"])
    return out


def test_the_manual_is_kept_as_a_crawler_would_have_kept_it(made: Path, manual: Path) -> None:
    skipped: Counter[str] = Counter()
    found = {response.url: response for response in warc.responses(made / "warc/gimp-help.warc.gz", skipped)}
    assert not skipped
    assert len(found) == 42 + 81
    one = found["https://docs.gimp.org/2.10/en/images/a%207+b.png"]
    assert one.body == (manual / docs.MANUALS["gimp-help"].folder / "images/a 7+b.png").read_bytes()
    assert one.content_type == "image/png"


def test_documents_have_text_and_images_in_order(made: Path, make_png: Callable[..., bytes]) -> None:
    corpus = Corpus(made / "train")
    for document in (corpus[index] for index in range(len(corpus))):
        number = int(document.meta["url"].split("page")[1].split(".")[0])
        first, one, between, two = document.segments
        assert isinstance(first, Text)
        assert first.text.startswith(f"{number}. Page\n")
        assert first.text.endswith(f"\nFigure {number}")
        assert between == Text("To be read with the following.")
        assert (one, two) == (Image(make_png(2 * number, (80, 70))), Image(make_png(2 * number + 1, (80, 70))))


def test_the_split_is_by_page(made: Path) -> None:
    train, test = (
        [document.key for document in (corpus[index] for index in range(len(corpus)))]
        for corpus in (Corpus(made / "train"), Corpus(made / "test"))
    )
    assert len(train) + len(test) == 40
    assert all(held_out(key, 4) for key in test)
    assert not any(held_out(key, 4) for key in train)
    assert 3 < len(test) < 20


def test_the_report_adds_up(made: Path) -> None:
    report = json.loads((made / "report.json").read_text())
    assert report["responses"] == {"gimp-help": {"pages": 42, "images": 81}}
    assert (report["in"]["pages"], report["kept"]["pages"]) == (42, 40)
    assert report["train"]["documents"] + report["test"]["documents"] == report["kept"]["pages"]
    assert report["train"]["images"] + report["test"]["images"] == report["kept"]["images"] == 80
    assert report["train"]["words"] > 100 * report["train"]["documents"]
    assert (made / "web/report.html").is_file()
    assert sorted(path.name for path in (made / "web").iterdir() if path.suffix == ".tar") == []


def test_an_unknown_manual_and_another_layout_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'vim' is none of gimp-help, scikit-image"):
        recipes.make("docs", tmp_path / "a", ["manuals=[vim]"])
    with pytest.raises(FileNotFoundError, match="laid out differently"):
        docs.write_warc(tmp_path / "gone", "https://x/", tmp_path / "a.warc.gz")
