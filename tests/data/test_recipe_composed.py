"""Recipe composed: pictures show what is said of them, and the test has combinations that training never has."""

from __future__ import annotations

import io
import itertools
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from kosmos_data import Corpus, recipes
from kosmos_data.document import Document
from kosmos_data.recipes import composed
from kosmos_data.recipes.composed import HOW_MANY, MORE, RELATIONS, Options, Thing
from kosmos_data.recipes.picture_sources import Collections, Named

SETTINGS = ["collections=[x]", "things=12", "documents=300", "held_out_every=3", "questions=120", "side=48"]
COLORS = [tuple(255 * bit // 2 for bit in bits) for bits in itertools.product((0, 1, 2), repeat=3)][:14]


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, ...]]:
    """Squares of one colour each, with a white corner; and the colour by the name."""
    return {f"thing {chr(97 + number)}": color for number, color in enumerate(COLORS)}


@pytest.fixture(scope="module")
def made(things: dict[str, tuple[int, ...]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, out = tmp_path_factory.mktemp("things"), tmp_path_factory.mktemp("composed") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Collections, "read", lambda self, name, skipped: iter(pictured(things, folder)))
        recipes.make("composed", out, SETTINGS)
    return out


def pictured(things: dict[str, tuple[int, ...]], folder: Path) -> list[Named]:
    found = []
    for name, color in things.items():
        picture = PIL.Image.new("RGB", (48, 48), color)
        picture.putpixel((0, 0), (255, 255, 255))
        picture.save(folder / f"{name}.png")
        found.append(Named(f"x/{name}", folder / f"{name}.png", name, name))
    return found


def where(data: bytes, color: tuple[int, ...]) -> np.ndarray:
    """The places (row, column) of the pixels of a colour; resampling leaves the inside of a square alone."""
    pixels = np.asarray(PIL.Image.open(io.BytesIO(data)))
    return np.argwhere((pixels == np.array(color)).all(-1))


def squares(data: bytes, color: tuple[int, ...]) -> int:
    """How many cells of a picture have a colour."""
    side = PIL.Image.open(io.BytesIO(data)).width // composed.CELLS
    return len({tuple(place) for place in where(data, color) // side})


def is_true(words: str, data: bytes, things: dict[str, tuple[int, ...]]) -> bool:
    """Whether a sentence is true of a picture, by the middles of the two colours."""
    (relation,) = (one for pair in RELATIONS for one in pair if f" {one} " in words)
    first, second = (where(data, things[name]).mean(0) for name in words.split(f" {relation} "))
    axis, sign = {"above": (0, 1), "below": (0, -1), "to the left of": (1, 1), "to the right of": (1, -1)}[relation]
    return bool(sign * (second[axis] - first[axis]) > 0)


def names_in(words: str, things: dict[str, tuple[int, ...]]) -> tuple[str, ...]:
    return tuple(sorted(name for name in things if name in words))


def rows(made: Path, split: str, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (made / f"eval/{split}/{name}.jsonl").read_text().splitlines()]


def image(made: Path, split: str, row: dict[str, Any]) -> bytes:
    return (made / f"eval/{split}/images/{row['images'][0]}").read_bytes()


def asked(document: Document) -> list[tuple[str, str]]:
    """The questions and answers of a document."""
    texts = [segment.text for segment in document.segments[1:]]  # type: ignore[union-attr]
    return [(question.removeprefix("Question: ").removesuffix(" Answer:"), answer.strip()) for question, answer in
            zip(texts[::2], texts[1::2], strict=True)]  # fmt: skip


def check(question: str, answer: str, data: bytes, things: dict[str, tuple[int, ...]]) -> None:
    """An answer must be what the picture shows."""
    numbers = {name: squares(data, things[name]) for name in names_in(question, things)}
    if len(numbers) == 1:
        assert answer == str(*numbers.values())
        return
    for words in MORE:
        for one, other in itertools.permutations(numbers):
            if question == words.format(one=one, other=other):
                assert answer == ("yes" if numbers[one] > numbers[other] else "no")
                return
    pytest.fail(question)


def test_pairs_of_the_test_are_never_trained_on(made: Path, things: dict[str, tuple[int, ...]]) -> None:
    """What is said is true of the picture; each thing is trained on, on either side; no pair of the test is."""
    trained: dict[tuple[str, ...], int] = Counter()
    sides: set[tuple[str, bool]] = set()
    for document in Corpus(made / "pairs"):
        words = document.text.removeprefix("An image of ")
        assert is_true(words, document.images[0].data, things)
        trained[names_in(words, things)] += 1
        sides |= {(name, words.startswith(name)) for name in names_in(words, things)}
    tested: dict[str, set[tuple[str, ...]]] = {"test": set(), "seen": set()}
    for split, found in tested.items():
        for row in rows(made, split, "pairs"):
            (wrong,) = set(row["candidates"]) - set(row["answers"])
            assert is_true(row["answers"][0], image(made, split, row), things)
            assert not is_true(wrong, image(made, split, row), things)
            assert sorted(wrong.split()) == sorted(row["answers"][0].split())
            found.add(names_in(wrong, things))
    assert not tested["test"] & set(trained)
    assert tested["seen"] <= set(trained)
    assert not tested["seen"] & tested["test"]
    assert {(name, first) for pair in tested["test"] for name in pair for first in (True, False)} <= sides


def test_numbers_of_the_test_are_never_trained_on(made: Path, things: dict[str, tuple[int, ...]]) -> None:
    trained: set[tuple[str, int]] = set()
    for document in Corpus(made / "counts"):
        data = document.images[0].data
        (how_many, number), (more, answer) = asked(document)
        check(how_many, number, data, things)
        check(more, answer, data, things)
        trained |= {(name, squares(data, things[name])) for name in names_in(more, things)}
    for split in ("test", "seen"):
        tested = set()
        for row in rows(made, split, "counts"):
            check(row["question"], row["answers"][0], image(made, split, row), things)
            tested.add((*names_in(row["question"], things), int(row["answers"][0])))
        for row in rows(made, split, "more"):
            check(row["question"], row["answers"][0], image(made, split, row), things)
        assert not tested & trained if split == "test" else tested <= trained
        assert {name for name, _ in tested} <= {name for name, _ in trained}
        assert {number for _, number in tested} <= {number for _, number in trained}


def test_words_alone_tell_nothing(made: Path) -> None:
    """Each sentence is right as often as wrong, each yes/no question yes as often as no, each number about as often."""
    for split in ("test", "seen"):
        right = Counter(row["answers"][0] for row in rows(made, split, "pairs"))
        wrong = Counter((set(row["candidates"]) - set(row["answers"])).pop() for row in rows(made, split, "pairs"))
        assert right == wrong
        more = rows(made, split, "more")
        for group in {row["group"] for row in more}:
            assert Counter(row["answers"][0] for row in more if row["group"] == group)["yes"] * 2 == len(more) / 2
        numbers = Counter(row["answers"][0] for row in rows(made, split, "counts"))
        assert max(numbers.values()) - min(numbers.values()) <= len(HOW_MANY)
        assert {row["group"] for row in rows(made, split, "counts")} == {
            "how many",
            "what is the number of",
            "count the",
        }


def test_the_same_seed_makes_the_same_bytes(
    made: Path, things: dict[str, tuple[int, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Collections, "read", lambda self, name, skipped: iter(pictured(things, tmp_path)))
    recipes.make("composed", tmp_path / "out", SETTINGS)
    files = [sorted(path for path in root.rglob("*") if path.is_file()) for root in (made, tmp_path / "out")]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


def test_numbers_that_cannot_be() -> None:
    for given in ({"most": 1}, {"most": 6}, {"things": 3}, {"held_out_every": 1}, {"side": 10}):
        ((name, value),) = given.items()
        with pytest.raises(ValueError, match=f"{name}={value}"):
            Options(**given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="things=2, but the collections have 0"):
        composed.chosen([], 2)


def test_a_pair_stays_in_its_halves() -> None:
    red, blue = (Thing(name, name, PIL.Image.new("RGB", (48, 48), name)) for name in ("red", "blue"))
    for seed in range(50):
        data = composed.compose_pair(red, blue, False, 48, random.Random(seed))
        assert where(data, (255, 0, 0))[:, 1].max() < 24 <= where(data, (0, 0, 255))[:, 1].min()
