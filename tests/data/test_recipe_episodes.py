"""Recipe episodes: what a document leaves open, what its beginning tells, and what questions keep from training."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kosmos_data import Corpus, recipes
from kosmos_data.recipes.episodes import SHOTS, invented
from kosmos_data.recipes.picture_sources import Collections, Named
from kosmos_eval import tasks
from kosmos_eval.readers import load_items

SETTINGS = [
    "collections=[x]", "held_out_every=3", "variants=3", "documents=40", "places=10", "most=5", "words=12",
    "held_out_words=6", "questions=60", "image_side=16",
]  # fmt: skip


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory, make_png: Callable[..., bytes]) -> list[Named]:
    folder = tmp_path_factory.mktemp("things")
    found = []
    for number in range(40):
        name = f"thing {chr(97 + number // 26)}{chr(97 + number % 26)}"
        (folder / f"{name}.png").write_bytes(make_png(number, (40, 40)))
        found.append(Named(f"x/{number}", folder / f"{name}.png", name, name))
    return found


@pytest.fixture(scope="module")
def made(things: list[Named], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("episodes") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Collections, "read", lambda self, name, skipped: iter(things))
        recipes.make("episodes", out, SETTINGS)
    return out


def pictures_by_name(corpus: Path) -> dict[bytes, str]:
    return {document.images[0].data: document.segments[1].text for document in Corpus(corpus / "names")}


def questions(made: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (made / f"eval/{name}.jsonl").read_text().splitlines()]


def test_a_document_binds_anew_and_teaches_only_what_it_has_told(made: Path) -> None:
    """Words follow from the pictures of the same document, and are not learnt where they come up first."""
    names = pictures_by_name(made)
    words_of: dict[str, set[str]] = {}
    for document in Corpus(made / "bindings"):
        pairs = list(zip(document.segments[::2], document.segments[1::2], strict=True))
        assert len(pairs) == 10
        bound: dict[str, str] = {}
        for image, word in pairs:
            assert word.supervised == (names[image.data] in bound)
            assert bound.setdefault(names[image.data], word.text) == word.text
        assert 2 <= len(bound) == len(set(bound.values())) <= 5
        for name, word in bound.items():
            words_of.setdefault(name, set()).add(word)
    assert max(map(len, words_of.values())) > 4, "no picture keeps its word"


def test_a_string_is_learnt_where_it_comes_again(made: Path) -> None:
    for document in Corpus(made / "words"):
        first, again = document.segments
        string, words = first.text.split(), again.text.split()
        assert (first.supervised, again.supervised) == (False, True)
        assert len(set(string)) == len(string)
        assert words == [string[place % len(string)] for place in range(len(words))]


def test_questions_hold_pictures_and_words_that_no_binding_has(made: Path) -> None:
    names, words = pictures_by_name(made), {text for text in invented(12, 0)}
    bound = {s.text for document in Corpus(made / "bindings") for s in document.segments[1::2]}
    strung = {word for document in Corpus(made / "words") for s in document.segments for word in s.text.split()}
    places: Counter[int] = Counter()
    asked: set[bytes] = set()
    told: set[bytes] = set()
    for name in ("test", "seen"):
        for row in questions(made, name):
            shown = [*row["demonstrations"], row]
            assert len(shown) == SHOTS + 1
            said = {word for one in shown for word in one["answers"]}
            assert set(row["candidates"]) == said
            for part in (row["demonstrations"][:4], row["demonstrations"][4:]):
                assert {word for one in part for word in one["answers"]} == said, "each thing once, then once more"
            known = [(made / "eval/images" / one["images"][0]).read_bytes() in names for one in shown]
            assert all(known) if name == "seen" else not any(known)
            assert said <= bound if name == "seen" else not said & bound
            assert said <= strung
            if name == "test":
                asked.add((made / "eval/images" / row["images"][0]).read_bytes())
                told |= {(made / "eval/images" / one["images"][0]).read_bytes() for one in row["demonstrations"]}
            places[row["candidates"].index(row["answers"][0])] += 1
    assert not asked & told, "kosmos eval passes over an example whose picture some question asks"
    assert bound == words
    assert min(places.values()) > 12  # of 30 expected


def test_the_same_settings_make_the_same_bytes(made: Path, things: list[Named], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Collections, "read", lambda self, name, skipped: iter(things))
        recipes.make("episodes", tmp_path / "out", SETTINGS)
    files = [sorted(path for path in root.rglob("*") if path.is_file()) for root in (made, tmp_path / "out")]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


def test_kosmos_eval_reads_the_questions(made: Path) -> None:
    task = tasks.load("picture_binding")
    for split in ("test", "seen"):
        items = load_items(task, made / "eval", split)
        assert len(items) == 60
        assert {len(item.demonstrations) for item in items} == {SHOTS}


def test_too_few_things_or_words_are_named(things: list[Named], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Collections, "read", lambda self, name, skipped: iter(things))
        with pytest.raises(ValueError, match=r"^3 new words, but 5 are bound at a time \(most, choices\); lower it"):
            recipes.make("episodes", tmp_path / "out", [*SETTINGS, "held_out_words=3"])
    with pytest.raises(ValueError, match="words and held_out_words are 99999 together; there are 24500"):
        invented(99999, 0)
