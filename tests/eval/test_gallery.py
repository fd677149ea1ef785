"""The picture of questions and answers."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kosmos.cli import main
from kosmos_eval.gallery import gallery

COLORS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200)}


def save(path: Path, color: str) -> dict[str, str]:
    """A picture; returns what a sample log says of it."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), COLORS[color]).save(buffer, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
    return {"file": path.name, "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """Two questions about red, one about a green picture of the same name in another folder, one without a picture."""
    red, green, other = (save(tmp_path / "data" / name, color) for name, color in
                         (("a/1.png", "red"), ("b/1.png", "green"), ("b/2.png", "blue")))  # fmt: skip
    rows = [("0", [red], 1.0), ("1", [red], 0.0), ("2", [other, green], 0.3), ("3", [], 0.0)]
    records = [{"id": key, "prediction": "yes $5", "answers": ["no"], "prompt": "<image>" * len(images) + "is it?",
                "images": images, "metrics": {"vqa": score}} for key, images, score in rows]  # fmt: skip
    path = tmp_path / "samples.jsonl"
    path.write_text("\n".join(map(json.dumps, records)) + "\n")
    return path


def pixels(path: Path) -> set[tuple[int, ...]]:
    """All colours of a picture."""
    with Image.open(path) as image:
        return set(map(tuple, np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()))


@pytest.mark.parametrize(("options", "expected"), [({"wrong": True}, ["1", "2"]), ({"wrong": True, "count": 1}, ["1"])])
def test_lowest_scores_first_and_no_image_twice(
    samples: Path, tmp_path: Path, options: dict[str, Any], expected: list[str]
) -> None:
    """Pictures are found by content: of two with one name the right one, of several in a prompt the item's own."""
    assert gallery(samples, tmp_path / "data", tmp_path / "out.png", **options) == expected
    shown = pixels(tmp_path / "out.png")
    assert {color: rgb in shown for color, rgb in COLORS.items()} == {
        "red": True, "green": "2" in expected, "blue": False
    }  # fmt: skip


def test_pictures_look_as_the_model_sees_them(tmp_path: Path) -> None:
    """Transparent ones are on white, not in the colour that nobody sees."""
    path = tmp_path / "data" / "1.png"
    path.parent.mkdir()
    Image.new("RGBA", (16, 16), (*COLORS["red"], 0)).save(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    record = {"id": "0", "prediction": "a", "answers": ["a"], "prompt": "<image>b", "metrics": {"vqa": 1.0}}
    (tmp_path / "samples.jsonl").write_text(json.dumps(record | {"images": [{"file": "1.png", "sha256": digest}]}))
    gallery(tmp_path / "samples.jsonl", tmp_path / "data", tmp_path / "out.png")
    assert COLORS["red"] not in pixels(tmp_path / "out.png")


def test_boxes_of_a_grounded_answer_are_drawn(samples: Path, tmp_path: Path) -> None:
    """One colour more than without: the outline of what the answer's words point at."""
    outline = (230, 25, 75)
    records = [json.loads(line) for line in samples.read_text().splitlines()]
    gallery(samples, tmp_path / "data", tmp_path / "out.png")
    assert outline not in pixels(tmp_path / "out.png")
    for record in records:
        record["boxes"] = [{"phrase": [0, 3], "boxes": [[0.25, 0.25, 0.75, 0.75]]}]
    samples.write_text("\n".join(map(json.dumps, records)) + "\n")
    gallery(samples, tmp_path / "data", tmp_path / "out.png")
    assert outline in pixels(tmp_path / "out.png")


def test_a_sample_is_always_the_same(samples: Path, tmp_path: Path) -> None:
    command = ["eval", "gallery", str(samples), "--images", str(tmp_path), "--out", str(tmp_path / "a" / "out.pdf")]
    drawn = [gallery(samples, tmp_path, tmp_path / "out.png", seed=seed) for seed in range(20)]
    assert gallery(samples, tmp_path, tmp_path / "out.png", seed=3) == drawn[3]
    assert {tuple(sorted(ids)) for ids in drawn} == {("0", "2"), ("1", "2")}
    assert main(command) == 0
    assert (tmp_path / "a" / "out.pdf").read_bytes().startswith(b"%PDF")


def test_what_is_missing_has_a_name(samples: Path, tmp_path: Path) -> None:
    save(tmp_path / "data" / "a" / "1.png", "blue")
    with pytest.raises(FileNotFoundError, match=r"data: no image 1\.png with SHA-256 [0-9a-f]{12}… in it"):
        gallery(samples, tmp_path / "data", tmp_path / "out.png")
    samples.write_text(samples.read_text().splitlines()[-1] + "\n")
    with pytest.raises(ValueError, match="no sample has an image"):
        gallery(samples, tmp_path, tmp_path / "out.png")
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl: no such file or folder"):
        gallery(tmp_path / "none.jsonl", tmp_path, tmp_path / "out.png")
