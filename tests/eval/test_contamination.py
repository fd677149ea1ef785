"""The contamination check finds planted copies, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kosmos_data import Document, Image, Text, write_shards
from kosmos_eval.cli import main
from kosmos_eval.contamination import check


def test_planted_image_and_text_are_found(toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leaked = (toy_data / "test/images/103.png").read_bytes()
    innocent = (toy_data / "train/images/3.png").read_bytes()
    write_shards(
        tmp_path / "corpus",
        [
            Document("clean", [Image(innocent), Text("what color is it? red")]),
            Document("leak", [Image(leaked), Text("hi")]),
        ],
    )
    report = check("easy_vqa", toy_data, [tmp_path / "corpus"])
    assert report.images == {"1030": f"{tmp_path / 'corpus'}:leak", "1031": f"{tmp_path / 'corpus'}:leak"}
    assert report.texts == {}
    assert report.documents == 2
    assert (
        main(["contamination", "--task", "easy_vqa", "--data", str(toy_data), "--shards", str(tmp_path / "corpus")])
        == 0
    )
    printed = json.loads(capsys.readouterr().out)
    assert printed["contaminated_items"] == 2
    assert printed["share"] == pytest.approx(2 / 24)


def test_thirteen_words_in_a_row_are_text_contamination(tmp_path: Path) -> None:
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "the",
        "lazy",
        "dog",
        "and",
        "then",
        "runs",
        "far",
        "away",
        "home",
    ]
    short = "is a bus larger than a house in town"
    lines = [
        {"id": "long", "question": " ".join(words), "answers": ["yes"]},
        {"id": "short", "question": short, "answers": ["no"]},
        {"id": "tiny", "question": "is it red", "answers": ["no"]},
    ]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, lines)))
    task = tmp_path / "t.yaml"
    task.write_text(
        "description: x\ndataset: {format: jsonl, annotations: '{split}.jsonl'}\nprompt: {template: '{question}'}\n"
        "metrics: [accuracy]\n"
    )
    write_shards(tmp_path / "twelve", [Document("a", [Text("So " + " ".join(words[:12]) + " stop is it red no")])])
    assert check(task, tmp_path, [tmp_path / "twelve"]).texts == {}
    full = Document("b", [Text("So " + " ".join(words[:13]).upper() + "! stop")])
    write_shards(tmp_path / "corpus", [full, Document("c", [Text(f"Q {short} no A")])])
    found = check(task, tmp_path, [tmp_path / "corpus"]).texts
    assert found == {"long": f"{tmp_path / 'corpus'}:b", "short": f"{tmp_path / 'corpus'}:c"}
