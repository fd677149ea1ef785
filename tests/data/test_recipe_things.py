"""Recipe ``things``: what words tell and what only pictures show are apart, and a picture has its thing's colour."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from kosmos_data import Corpus, Image, recipes
from kosmos_data.recipes.things import COLORS, Options, draw_things

SMALL = ["things=48", "pictures=2", "told=1"]


def test_words_never_tell_what_is_asked(tmp_path: Path) -> None:
    """Names, pictures, words and both sets of questions; the same seed draws the same."""
    report = recipes.make("things", tmp_path / "a", SMALL)
    assert report["documents"] == {"pictures": 96, "names": 96, "colors": 24}
    asked = {
        part: [json.loads(line) for line in (tmp_path / f"a/eval/{part}/test.jsonl").read_text().splitlines()]
        for part in ("told", "seen")
    }
    colors = {row["object"]: row["answers"][0] for rows in asked.values() for row in rows}
    assert len(colors) == 48
    for rows in asked.values():  # both halves have every colour
        assert {row["answers"][0] for row in rows} == set(COLORS)
    pictures, names, told = (Corpus(str(tmp_path / "a" / name)) for name in ("pictures", "names", "colors"))
    words = " ".join(told[at].text for at in range(len(told)))
    assert all(f" {row['object']} is? {row['answers'][0]}" in words.replace("\n", "") for row in asked["told"])
    assert not any(f" {row['object']} " in words for row in asked["seen"])
    for at in range(len(pictures)):
        image, _ = pictures[at].segments
        assert isinstance(image, Image)
        assert pictures[at].text == names[at].text
        assert not any(color in names[at].text for color in COLORS)
        name = names[at].text.split()[-1]
        assert _colorful(image) == colors[name]
    recipes.make("things", tmp_path / "b", SMALL)
    again = Corpus(str(tmp_path / "b" / "pictures"))
    assert [again[at] for at in range(96)] == [pictures[at] for at in range(96)]


def _colorful(image: Image) -> str:
    """The named colour that the mean of all that is not gray is nearest to."""
    pixels = np.asarray(PIL.Image.open(io.BytesIO(image.data)), dtype=float).reshape(-1, 3)
    own = pixels[np.ptp(pixels, axis=1) > 25].mean(0)
    return min(COLORS, key=lambda name: float(np.abs(own - np.array(COLORS[name])).sum()))


def test_numbers_that_cannot_be() -> None:
    for name, value in (("things", 3), ("things", 10_000), ("pictures", 0), ("told", 0), ("side", 8)):
        with pytest.raises(ValueError, match=f"{name}={value}"):
            Options(**{name: value})
    assert len({thing.name for thing in draw_things(Options())}) == 160
