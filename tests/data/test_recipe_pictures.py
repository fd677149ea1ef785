"""Recipe pictures: what each collection calls its pictures, why others are left out, and a split by base name."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from rich.progress import Progress

from kosmos import KosmosImageProcessor
from kosmos_data import Corpus, recipes
from kosmos_data.images import open_image
from kosmos_data.recipes import packages, picture_questions, picture_sources, picture_variants, pictures
from kosmos_data.recipes.picture_sources import Collections, Named

Png = Callable[..., bytes]

WORK = """<svg xmlns="http://www.w3.org/2000/svg"><title>of the drawing</title><metadata><rdf:RDF>
<{cc}Work rdf:about=""><dc:title>{title}</dc:title><dc:description>x</dc:description><dc:subject><rdf:Bag>
<rdf:li>big_cat</rdf:li><rdf:li>HASH(0x1)</rdf:li><rdf:li>hash</rdf:li><rdf:li></rdf:li><rdf:li>fur</rdf:li>
</rdf:Bag></dc:subject><dc:creator><cc:Agent><dc:title>A. Nother</dc:title></cc:Agent></dc:creator></{cc}Work>
</rdf:RDF></metadata></svg>"""


def test_emoji_have_names_and_keywords(tmp_path: Path) -> None:
    for name in ("1f600", "1f441-fe0f", "1f44b-1f3fb", "1f1e9-1f1ea", "0023-fe0f-20e3", "23-20e3", "e000"):
        (tmp_path / f"{name}.webp").write_bytes(b"")
    names = {"1f600": "grinning face", "1f441": "eye", "1f1e9-1f1ea": "flag Germany", "0023-20e3": "keycap #"}
    table = {
        code: {"name": name, "group": "Flags" if "flag" in name else "Animals & Nature"} for code, name in names.items()
    }
    skipped: Counter[str] = Counter()
    words = {"1f600": ["grinning_face", "smile", ":D", "very_happy"], "1f441": ["see"]}
    found = {named.key: named for named in picture_sources.emoji(tmp_path, table, words, skipped)}
    assert set(found) == {"emoji/1f600", "emoji/1f441", "emoji/0023-20e3"}
    assert (found["emoji/1f600"].phrase, found["emoji/1f600"].keywords) == ("grinning face", ("smile", "very happy"))
    assert found["emoji/1f441"].group == "animals and nature"
    assert skipped == {"skin tone": 1, "flag": 1, "another file of one emoji": 1, "no name": 1}


def test_stamps_have_captions_in_many_languages(tmp_path: Path) -> None:
    captions = {
        "animals/dog.1": "A basset hound dog.\nde.utf8=Ein Basset.\nfr.utf8=\npt_BR.utf8=Um  cão.",
        "knight": "Knight. The only piece that can jump over others.",
        "six": "6.",
        "vector": "A vector.",
    }
    (tmp_path / "animals").mkdir()
    for name, text in captions.items():
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
        if name != "vector":
            (tmp_path / f"{name}.png").write_bytes(b"")
    skipped: Counter[str] = Counter()
    dog, knight = picture_sources.stamps(tmp_path, skipped)
    assert (dog.key, dog.phrase, dog.caption) == ("stamps/animals/dog_1", "a basset hound dog", "A basset hound dog.")
    assert dog.translations == {"de": "Ein Basset.", "pt_BR": "Um cão."}
    assert (dog.group, knight.group) == ("animals", "")
    assert (knight.phrase, knight.caption) == ("Knight", captions["knight"])
    assert skipped == {"no name": 1, "only as SVG": 1}


def test_clip_art_titles_must_name_the_picture(tmp_path: Path) -> None:
    titles = {
        "cats/a": "Sleeping Cat 01",
        "cats/eiffel": "Eiffel_Tower (black &amp; white)",
        "cats/b": "Gatto",
        "cats/own": "Clipart by Some Body - own",
        "cats/copied": "Clipart by Some Body - own",
        "flags/ireland": "cat",
        "cats/c": "",
        "cats/d": "http://example.com cat",
        "cats/nopng": "cat",
    } | {f"icons/{number}": "Cat Theme" for number in range(6)}
    for name, title in titles.items():
        for kind in ("svg", "png"):
            (tmp_path / kind / name).parent.mkdir(parents=True, exist_ok=True)
        cc = "cc:" if name < "cats/c" else ""
        (tmp_path / f"svg/{name}.svg").write_text(WORK.format(title=title, cc=cc))
        if name != "cats/nopng":
            (tmp_path / f"png/{name}.png").write_bytes(b"")
    skipped: Counter[str] = Counter()
    words = {"sleep", "cat", "Eiffel", "tower", "theme", "own"}
    found = list(picture_sources.clipart(tmp_path / "svg", tmp_path / "png", words, skipped))
    assert {named.key: named.phrase for named in found} == {
        "clipart/cats/a": "Sleeping cat",
        "clipart/cats/eiffel": "Eiffel tower",
        "clipart/cats/own": "own",
    }
    assert found[0].caption == "Sleeping Cat"
    assert found[0].keywords == ("big cat", "fur")
    assert skipped == {
        "title of a collection": 6,
        "title not in English words": 1,
        "title of another picture": 1,
        "flag": 1,
        "no title": 1,
        "title is no name": 1,
        "no PNG": 1,
    }


def test_variants_of_a_thing_share_their_base_name() -> None:
    names = ["woman walking", "man walking", "person walking", "Walking 02", "a walking man"]
    assert {Named("k", Path(), name, name).base_name for name in names} == {"walking"}
    assert Named("k", Path(), "the 12", "x").base_name == "the 12"


def by_hand(folder: Path, make_png: Png) -> list[Named]:
    """Forty things with a picture each, ten of them twice under other names; a dull, a small and a broken picture."""
    contents = {f"thing {chr(97 + n // 26)}{chr(97 + n % 26)}": make_png(n, (40, 36)) for n in range(40)}
    contents |= {f"a {name} 2": make_png(50 + n, (40, 36)) for n, name in enumerate(list(contents)[:10])}
    contents |= {"small": make_png(99, (8, 40)), "broken": b"x", "again": next(iter(contents.values()))}
    named = []
    for name, data in contents.items():
        path = folder / f"{name}.png"
        path.write_bytes(data)
        group = ("animals", "food", "")[len(named) % 3]
        words, translations = ("one", "two"), {"de": f"{name} auf Deutsch"}
        named.append(Named(f"x/{name}", path, name, f"{name}.", words, translations, group))
    return named


def test_the_split_is_by_base_name(tmp_path: Path, make_png: Png, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    things = by_hand(tmp_path / "in", make_png)
    monkeypatch.setattr(Collections, "read", lambda self, name, skipped: iter(things))
    settings = ["collections=[x]", "languages=[de,fr]", "held_out_every=3", "demonstrations=5"]
    reports = [recipes.make("pictures", tmp_path / name, settings, Progress(disable=True)) for name in ("out", "again")]
    files = [sorted(path for path in (tmp_path / name).rglob("*") if path.is_file()) for name in ("out", "again")]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    assert reports[0]["left_out"] == {
        "x": {"smaller than 32 pixels": 1, "image broken": 1, "same picture again": 1},
    }
    out = tmp_path / "out"
    trained = {hashlib.sha256(image.data).digest() for document in Corpus(out / "pairs") for image in document.images}
    tested = {hashlib.sha256(path.read_bytes()).digest() for path in (out / "eval/test/images").iterdir()}
    shown = {hashlib.sha256(path.read_bytes()).digest() for path in (out / "eval/train/images").iterdir()}
    assert len(trained | tested) == 50
    assert not trained & tested
    assert shown < trained
    assert len(shown) == 5
    keys = Counter(document.key.rpartition("-")[2] for document in Corpus(out / "pairs"))
    assert keys == dict.fromkeys(("0", "1", "de"), len(trained))
    assert {document.segments[1].text for document in Corpus(out / "keywords")} == {
        "Keywords: one, two",
        "Keywords: animals, one, two",
        "Keywords: food, one, two",
    }
    asked = {hashlib.sha256(document.images[0].data).digest() for document in Corpus(out / "qa")}
    assert asked == trained


def test_a_quick_look_reads_some_pictures_of_each_collection(
    tmp_path: Path, make_png: Png, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same ones in any order of the source, and on the same side as among all."""
    (tmp_path / "in").mkdir()
    things = by_hand(tmp_path / "in", make_png)[:40]
    sides = {}
    for name, order, settings in (("all", 1, []), ("some", 1, ["pictures=12"]), ("again", -1, ["pictures=12"])):
        monkeypatch.setattr(Collections, "read", lambda self, name, skipped, order=order: iter(things[::order]))
        report = recipes.make("pictures", tmp_path / name, ["collections=[x]", *settings], Progress(disable=True))
        assert report["pictures"] == {"x": 12 if settings else 40}
        sides[name] = {document.key.rpartition("-")[0] for document in Corpus(tmp_path / name / "pairs")}
    assert sides["some"] == sides["again"] < sides["all"]


@pytest.mark.parametrize(
    ("recipe", "option"), [("pictures", "pictures=-5"), ("starter", "images=-1"), ("episodes", "variants=-2")]
)
def test_no_number_below_zero(tmp_path: Path, recipe: str, option: str) -> None:
    """For a slice it would mean all but the last ones; nothing is fetched or written."""
    with pytest.raises(ValueError, match=f"recipe {recipe}: {option}; give 0 or more"):
        recipes.make(recipe, tmp_path / "out", [option])
    assert not (tmp_path / "out").exists()


def test_variants_are_small_changes_of_one_picture(make_png: Png) -> None:
    """The others differ from the picture and from each other, the same each time."""
    picture = Named("x/a", Path("a.png"), "a", "a", ("b", "c"))
    data = make_png(0)
    changed = [picture_variants.variant(data, f"seed {number}") for number in range(3)]
    assert changed == [picture_variants.variant(data, f"seed {number}") for number in range(3)]
    assert len({*changed, data}) == 4
    assert {open_image(image).size for image in changed} == {open_image(data).size}
    assert pictures.describe(picture, Counter(c=2, b=1), 4) == "c, b"
    assert pictures.describe(replace(picture, group="food"), Counter(c=2, b=1), 1) == "food, c"


def read_choices(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_eight_names_of_which_one_is_right() -> None:
    """Other base names, no name within another, every place of the right one, and no name much more often."""
    names = [f"{color} {thing}" for color in ("red", "blue", "green", "old") for thing in ("cat", "hat", "house")]
    things = [Named(f"x/{name}", Path(), name, name) for name in [*names, "woman cat", "man cat", "cat", "the old cat"]]
    rows = picture_questions.choices(things)
    assert rows == picture_questions.choices(things)
    for thing, row in zip(things, rows, strict=True):
        others = {name for name in row if name != thing.phrase}
        assert len(set(row)) == 8
        assert len(others) == 7
        bases = [Named("", Path(), name, name).base_name for name in row]
        assert len(set(bases)) == 8
        words = set(thing.phrase.split()) - {"the"}
        assert not any(words <= set(name.split()) or set(name.split()) <= words for name in others), row
    assert [len(row) for row in picture_questions.choices(things[:3])] == [3, 3, 3], "fewer than eight: all there are"
    many = [Named(f"x/{n}", Path(), f"{chr(97 + n // 26)}{chr(97 + n % 26)}", "") for n in range(200)]
    rows = picture_questions.choices(many)
    places = Counter(row.index(thing.phrase) for thing, row in zip(many, rows, strict=True))
    assert min(places[place] for place in range(8)) > 10  # of 25 expected
    assert max(Counter(name for row in rows for name in row).values()) < 20  # of 8 expected


def test_yes_and_no_are_equally_frequent_in_each_question() -> None:
    groups = ["animals and nature", "food and drink", "objects", "symbols", "people and body", "travel and places", ""]
    things = [
        Named(f"x/{n}", Path(), f"thing {n}", "", ("animal",) if n % 14 == 0 else ("clothing",), group=groups[n % 7])
        for n in range(140)
    ]
    things += [Named("x/hat", Path(), "hat", "", (), group="objects"), Named("x/cow", Path(), "cow", "", (), group="")]
    asked = picture_questions.ask(things)
    counts = Counter((question.text, question.answer) for questions in asked for question in questions)
    for kind in picture_questions.KINDS:
        text = f"is this {kind.name}?"
        assert counts[text, "yes"] == counts[text, "no"]
    assert counts["is this an animal?", "yes"] == 10
    assert counts["is this food or drink?", "yes"] == 20
    by_key = {thing.key: {q.text: q.answer for q in questions} for thing, questions in zip(things, asked, strict=True)}
    assert by_key["x/0"]["what kind of thing is it?"] == "animals and nature"
    assert by_key["x/cow"] == {"what is this?": "cow"}, "no group: nothing else is known"
    assert "is this an animal?" not in by_key["x/7"], "of a group with animals, but it does not say that it is one"


def test_questions_are_asked_as_the_starter_asks(tmp_path: Path, make_png: Png) -> None:
    (tmp_path / "in").mkdir()
    things = [replace(thing, group="animals") for thing in by_hand(tmp_path / "in", make_png)[:30]]
    documents = list(picture_questions.documents(things, 2))
    lengths = Counter((len(document.segments) - 1) // 2 for document in documents)
    assert set(lengths) == {1, 2}
    for document in documents:
        _, *turns = document.segments
        assert [part.supervised for part in turns] == [False, True] * (len(turns) // 2)
        assert turns[0].text.startswith("Question: ")
        assert turns[0].text.endswith("? Answer:")
        assert turns[1].text.startswith(" ")
        assert turns[1].text.endswith("\n") == (len(turns) > 2)
    assert sum(count * turns for turns, count in lengths.items()) == sum(map(len, picture_questions.ask(things)))


def test_smaller_pictures_are_what_the_image_processor_makes_of_them(
    tmp_path: Path, make_png: Png, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``image_side`` a square picture is stored with the pixels that the model reads anyway, also a clear one."""
    (tmp_path / "in").mkdir()
    things = []
    for number in range(12):
        clear = PIL.Image.open(io.BytesIO(make_png(number, (100, 100)))).convert("RGBA")
        clear.putalpha(PIL.Image.fromarray(np.full((100, 100), 20 * number, dtype=np.uint8)))
        path = tmp_path / f"in/{number}.webp"
        clear.save(path, lossless=True)
        things.append(Named(f"x/{number}", path, f"thing {chr(97 + number)}", ""))
    small = tmp_path / "in/small.png"
    small.write_bytes(make_png(77, (50, 60)))
    wide = tmp_path / "in/wide.png"
    wide.write_bytes(make_png(78, (200, 100)))
    things += [Named("x/small", small, "small", ""), Named("x/wide", wide, "wide", "")]
    monkeypatch.setattr(Collections, "read", lambda self, name, skipped: iter(things))
    settings = ["collections=[x]", "held_out_every=1000000", "image_side=64"]
    recipes.make("pictures", tmp_path / "out", settings)
    stored = {document.key: document.images[0].data for document in Corpus(tmp_path / "out/pairs")}
    processor = KosmosImageProcessor(image_size=64)
    for thing in things[1:12]:  # the first is wholly transparent, so it is of one colour
        image = open_image(stored[f"{thing.key}-0"])
        assert (image.size, image.mode) == ((64, 64), "RGB")
        assert processor.to_tensor(image).equal(processor.to_tensor(open_image(thing.path.read_bytes())))
    assert stored["x/small-0"] == small.read_bytes()
    assert open_image(stored["x/wide-0"]).size == (128, 64)


def test_a_missing_client_is_one_error_that_a_caller_can_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    settings = ["collections=[emoji]", f"cache={tmp_path / 'cache'}"]
    with pytest.raises(packages.PackageUnavailable, match=r"^the program npm is missing: install Node\.js"):
        recipes.make("pictures", tmp_path / "out", settings)
    assert not list((tmp_path / "out").iterdir()), "nothing is left half written"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    try:
        recipes.make("pictures", root / "out", ["collections=[emoji]", "demonstrations=20", f"cache={root / 'cache'}"])
    except OSError as error:
        pytest.skip(f"no registry: {error}")
    return root / "out"


def test_the_real_emoji(built: Path) -> None:
    report = json.loads((built / "report.json").read_text())
    assert report["pictures"] == {"emoji": 1598}
    assert report["left_out"]["emoji"] == {
        "flag": 253,
        "skin tone": 1520,
        "no name": 3,
        "another file of one emoji": 16,
        "same picture again": 1,
    }
    documents = {document.key: document for document in Corpus(built / "pairs")}
    assert len(documents) == report["documents"]["pairs"]
    assert documents["emoji/1f402-0"].segments[1].text == "An image of ox"
    trained = {document.segments[1].text for document in documents.values()}
    qa = [document for document in Corpus(built / "qa") if document.key.startswith("emoji/1f402-")]
    assert {"Question: what kind of thing is it? Answer:", "Question: what is this? Answer:"} < {
        segment.text for document in qa for segment in document.segments[1:]
    }
    rows = read_choices(built / "eval/test/names.jsonl")
    assert len(rows) == report["eval_test_pictures"] == 188
    assert {len(set(row["candidates"])) for row in rows} == {8}
    assert all(row["answers"][0] in row["candidates"] for row in rows)
    captions = json.loads((built / "eval/test/captions.json").read_text())
    assert not {annotation["caption"] for annotation in captions["annotations"]} & trained


@pytest.mark.parametrize("name", ["picture_captions", "picture_names", "picture_vqa"])
def test_kosmos_eval_reads_the_real_emoji(built: Path, name: str) -> None:
    tasks, data = pytest.importorskip("kosmos_eval.tasks"), pytest.importorskip("kosmos_eval.readers")
    task = tasks.load(name)
    for split, count in (("test", len(list((built / "eval/test/images").iterdir()))), ("train", 20)):
        items = data.load_items(task, built / "eval", split)
        assert len({item.images for item in items}) == count
        assert all(item.images[0].is_file() and item.answers for item in items)


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no picture collection 'emojis'; known: emoji, stamps, clipart"):
        pictures.build(tmp_path, pictures.Options(collections=["emojis"]), Progress(disable=True))
