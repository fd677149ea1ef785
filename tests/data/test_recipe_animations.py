"""Recipe animations: a real emoji that moves (tests/fixtures/media) and drawn ones, in a cache as npm leaves it."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from kosmos.media import read_frames
from kosmos_data import Corpus, Video, recipes
from kosmos_data.recipes.animations import _NPM, _VERSION
from kosmos_data.recipes.picture_sources import _NPM as _PICTURES

NAMES = {0x1F30C: "milky way", 0x1F30D: "globe", 0x1F436: "dog face", 0x1F431: "cat face", 0x1F43B: "bear"}


def webp(shades: Sequence[int]) -> bytes:
    """An animation of one colour a frame; of one shade a picture."""
    frames = [PIL.Image.new("RGB", (20, 20), (shade, 90, 40)) for shade in shades]
    file = io.BytesIO()
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], duration=100, lossless=True)
    return file.getvalue()


def package(cache: Path, name: str, version: str, files: dict[str, bytes]) -> None:
    home = cache / "packages/npm" / name / version
    for path, data in files.items():
        (home / "files/package" / path).parent.mkdir(parents=True, exist_ok=True)
        (home / "files/package" / path).write_bytes(data)
    (home / "record.json").write_text(json.dumps({"client": "npm", "name": name, "version": version}))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    root = tmp_path_factory.mktemp("npm")
    stills = {f"assets/{code:x}.webp": webp([number]) for number, code in enumerate(NAMES)}
    table = {chr(code): {"name": name, "group": "Animals & Nature"} for code, name in NAMES.items()}
    contents: list[dict[str, bytes]] = [
        stills,
        {"data-by-emoji.json": json.dumps(table).encode()},
        {"dist/emoji-en-US.json": b"{}"},
    ]
    for (name, (version, _)), files in zip(_PICTURES.items(), contents, strict=True):
        package(root, name, version, files)
    real = (repository / "tests/fixtures/media/milky_way.webp").read_bytes()
    moving = {f"assets/{code:x}.webp": webp([number, 200]) for number, code in enumerate(NAMES) if number > 1}
    still = {"assets/1f30d.webp": webp([7]), "assets/1f44b-1f3fb.webp": webp([1, 2])}
    for name, files in zip(_NPM, (moving, {"assets/1f30c.webp": real}, still, {"assets/x.txt": b""}), strict=True):
        package(root, name, _VERSION, files)
    return root


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_animations_with_names(cache: Path, tmp_path: Path) -> None:
    report = recipes.make("animations", tmp_path / "out", [f"cache={cache}", "held_out_every=1000000"])
    assert report["left_out"] == {"no still picture with a name (skin tones, flags)": 1, "does not move": 1}
    documents = {one.key: one for one in Corpus(tmp_path / "out/pairs")}
    assert set(documents) == {f"emoji/{code:x}" for code in NAMES if code != 0x1F30D}
    video, text = documents["emoji/1f30c"].segments
    assert text.text == "An image of milky way"
    assert isinstance(video, Video)
    assert len(read_frames(video.data, 100)) == 34
    shown = lines(tmp_path / "out/eval/train/names.jsonl")
    assert len(shown) == report["eval_train"] == 4


def test_choices_of_held_out_names(cache: Path, tmp_path: Path) -> None:
    """Animation and still have the same candidates, and files of their own."""
    report = recipes.make("animations", tmp_path / "out", [f"cache={cache}", "held_out_every=1"])
    assert (report["eval_test"], report["documents"]) == (4, {"pairs": 0})
    folder = tmp_path / "out/eval/test"
    moved, still = lines(folder / "names.jsonl"), lines(folder / "stills.jsonl")
    assert [{**one, "files": 0} for one in moved] == [{**one, "files": 0} for one in still]
    for one in moved:
        assert one["answers"][0] in one["candidates"]
        assert len(set(one["candidates"])) == 4
        assert PIL.Image.open(folder / "animations" / one["files"][0]).n_frames > 1
    assert all(PIL.Image.open(folder / "stills" / one["files"][0]).n_frames == 1 for one in still)
    with pytest.raises(ValueError, match="parts has 5; there are 1 to 4"):
        recipes.make("animations", tmp_path / "other", [f"cache={cache}", "parts=[1,5]"])
