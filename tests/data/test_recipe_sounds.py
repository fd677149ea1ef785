"""Recipe sounds, on real recordings of Tux Paint's stamps (tests/fixtures/media) and on drawn ones."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kosmos.media import read_sound
from kosmos_data import Audio, Corpus, Text, recipes
from kosmos_data.recipes import sound_sources, sounds
from kosmos_data.recipes.sound_sources import Recording, recordings
from kosmos_data.recipes.sound_variants import FASTEST, SLOWEST, variant

pytest.importorskip("av")

Wav = Callable[..., bytes]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_real_recordings_become_documents(stamps_cache: Path, tmp_path: Path) -> None:
    """Sounds with what is said in them, bytes as they were; a recording of two stamps comes once."""
    report = recipes.make("sounds", tmp_path / "out", [f"cache={stamps_cache}", "held_out_every=1000000", "variants=2"])
    assert report["recordings"] == {"ca": 11, "fr": 1, "sound": 1}
    assert report["left_out"]["same recording again"] == 1  # the lion's
    assert report["documents"] == {"names": 24, "languages": 12, "sounds": 1}
    names = {one.key: one for one in Corpus(tmp_path / "out/names")}
    rat = names["ca/animals/mammals/rodents/rat"]
    sound, question, answer = rat.segments
    assert isinstance(sound, Audio)
    assert sound.data == next(stamps_cache.rglob("rat_desc_ca.ogg")).read_bytes()
    assert question == Text("Question: what is said? Answer:", supervised=False)
    assert (answer, rat.meta) == (Text(" una rateta"), {"language": "ca"})
    assert names["fr/animals/mammals/bovines/zebu"].text.endswith("un zébu")
    (heard,) = Corpus(tmp_path / "out/sounds")
    assert heard.text == "Question: what is heard? Answer:\n a cow"
    assert {one.segments[-1].text for one in Corpus(tmp_path / "out/languages")} == {" Catalan", " French"}


def test_a_variant_is_the_same_at_another_speed(stamps_cache: Path) -> None:
    data = next(stamps_cache.rglob("pigeon_desc_ca.ogg")).read_bytes()
    plain = read_sound(data, 16_000, 5.0)
    made = [variant(data, f"seed {number}", 5.0) for number in range(12)]
    assert made == [variant(data, f"seed {number}", 5.0) for number in range(12)]
    ratios = [len(read_sound(one, 16_000, 5.0)) / len(plain) for one in made]
    assert 1 / FASTEST - 0.01 < min(ratios) < 0.97 < 1.03 < max(ratios) < 1 / SLOWEST + 0.01
    most = len(plain) / 16_000 + 0.001
    assert all(len(read_sound(variant(data, f"{number}", most), 16_000, most)) for number in range(12))  # not longer
    loudest = [np.abs(read_sound(one, 16_000, 5.0)).max() for one in made]
    assert 0.38 < min(loudest) < max(loudest) <= 1.0


def test_held_out_names_are_nowhere_in_training(tmp_path: Path, wav: Wav) -> None:
    """Neither in another language nor as another thing of the same name; each of the eight names is right once."""
    stamps = tmp_path / "cache/packages/apt/tuxpaint-stamps-default/2022.06.04-1/files/usr/share/tuxpaint/stamps"
    stamps.mkdir(parents=True)
    (stamps.parents[4] / "record.json").write_text('{"version": "2022.06.04-1"}')
    for number in range(120):
        spoken = f"cosa {chr(97 + number % 26)}{'o' * (number // 26)}"
        text = f"A thing {chr(97 + number // 26)}{chr(97 + number % 26)}.\nes.utf8=Una {spoken}.\nfr.utf8=La {spoken}!"
        (stamps / f"{number}.txt").write_text(text)
        for language in ("es", "fr"):
            name = f"{number}_desc_{language}.wav"
            (stamps / name).write_bytes(wav(0.1, 200 + number + 500 * (language == "fr"), 16_000))
    (stamps / "same.txt").write_text("An other word.\nes.utf8=Una cosa a")  # a name of thing aa, by another word
    (stamps / "same_desc_es.wav").write_bytes(wav(0.1, 3000, 16_000))
    options = ["held_out_every=3", f"cache={tmp_path / 'cache'}"]
    report = recipes.make("sounds", tmp_path / "out", options)
    names = lines(tmp_path / "out/eval/test/names.jsonl")
    said = [(one["id"][:2], one["answers"][0]) for one in names]
    trained = {(one.meta["language"], one.segments[-1].text.strip()) for one in Corpus(tmp_path / "out/names")}
    assert not trained & set(said)
    things = [one["id"].partition("/")[2] for one in names]
    assert not {one.key.partition("/")[2] for one in Corpus(tmp_path / "out/names")} & set(things)
    assert len(said) == report["eval_names"] > 16
    by_names = Counter((one["id"][:2], tuple(one["candidates"])) for one in names)
    assert set(by_names.values()) == {8}
    assert all(len(set(one["candidates"])) == 8 and one["answers"][0] in one["candidates"] for one in names)
    assert all((tmp_path / "out/eval/test/sounds" / one["files"][0]).is_file() for one in names)
    languages = lines(tmp_path / "out/eval/test/languages.jsonl")
    assert {tuple(one["candidates"]) for one in languages} == {("French", "Spanish")}
    held = report["left_out"]
    assert held["held-out name said again"] + held["says a held-out name"] >= 1  # "una cosa a", wherever thing aa is


def test_what_is_left_out_is_counted(tmp_path: Path, wav: Wav) -> None:
    captions = {"a": "A cat.\nes.utf8=Un gato.", "b": "A dog.", "c": "A coin.\nes.utf8=1 centavo ($0,01)."}
    for name, text in captions.items():
        (tmp_path / f"{name}.txt").write_text(text)
        (tmp_path / f"{name}_desc_es.wav").write_bytes(wav(0.1, 300))
    (tmp_path / "a_desc_lt.wav").write_bytes(wav(0.1))
    (tmp_path / "7_en.wav").write_bytes(wav(0.1))
    (tmp_path / "a.wav").write_bytes(wav(0.1, 0.0))
    (tmp_path / "b.wav").write_bytes(wav(2.0))
    (tmp_path / "c.ogg").write_bytes(b"no sound")
    skipped: Counter[str] = Counter()
    assert list(recordings(tmp_path, ["es"], 1.0, skipped)) == [
        Recording("es/a", tmp_path / "a_desc_es.wav", "es", "un gato", "cat")
    ]
    assert skipped == {
        "another language": 1, "letters and numbers": 1, "no name in its language": 1, "numbers and remarks": 1,
        "silent": 1, "longer than 1 s": 1, "broken": 1,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"languages has 'lt'; there are recordings in be, bg, "):
        list(recordings(tmp_path, ["lt"], 1.0, skipped))


def test_names_of_one_length_in_eights() -> None:
    """What is left of a language's names has no seven others, and is counted."""
    made = [Recording(f"es/{n}", Path("x"), "es", "o" * (1 + n), f"{n}") for n in range(19)]
    made.append(Recording("es/again", Path("x"), "es", "o", "again"))
    skipped: Counter[str] = Counter()
    found = list(sounds.choices(made, skipped))
    assert skipped == {"held-out name said again": 1, "held-out name without seven others as long": 3}
    assert len(found) == 16
    assert all(max(map(len, names)) - min(map(len, names)) == 7 for _, names in found)
    assert sound_sources.SOUND not in sound_sources.LANGUAGES
