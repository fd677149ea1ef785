"""Readers of published formats: a hand-made sample of each, and the errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kosmos_eval.readers import load_items
from kosmos_eval.tasks import DatasetFiles, Prompt, Task


def task(kind: Any, annotations: str, images: str = "", split: str = "test", **options: Any) -> Task:
    return Task("t", DatasetFiles(kind, annotations, images=images, **options), Prompt("x"), split=split, name="t")


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def test_karpathy_split_file(tmp_path: Path) -> None:
    entries = [
        {"cocoid": 9, "imgid": 0, "filename": "COCO_9.jpg", "filepath": "val2014", "split": "test",
         "sentences": [{"raw": "A cat."}, {"raw": "One cat"}]},
        {"cocoid": 8, "imgid": 1, "filename": "COCO_8.jpg", "filepath": "train2014", "split": "train",
         "sentences": [{"raw": "x"}]},
        {"cocoid": 7, "imgid": 2, "filename": "COCO_7.jpg", "filepath": "val2014", "split": "restval",
         "sentences": [{"raw": "y"}]},
    ]  # fmt: skip
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": entries}))
    for entry in entries:
        picture(tmp_path / "images" / str(entry["filepath"]) / str(entry["filename"]))
    coco = task("karpathy", "dataset_coco.json", "images/{file_name}")
    (item,) = load_items(coco, tmp_path, "test")
    assert (item.id, item.answers) == ("9", ("A cat.", "One cat"))
    assert {item.id for item in load_items(coco, tmp_path, "train")} == {"8", "7"}


def test_vqav2_file_names_and_types(tmp_path: Path) -> None:
    ids = {"question_id": 42000, "image_id": 42}
    answers = [{"answer": "red", "answer_id": 1}]
    (tmp_path / "q.json").write_text(json.dumps({"questions": [ids | {"question": "what?"}]}))
    types = {"question_type": "what", "answer_type": "other"}
    (tmp_path / "a.json").write_text(json.dumps({"annotations": [ids | types | {"answers": answers}]}))
    picture(tmp_path / "val2014/COCO_val2014_000000000042.jpg")
    pattern = "{split}/COCO_{split}_{image_id:012d}.jpg"
    vqa = task("vqa", "a.json", pattern, "val2014", questions="q.json", group="answer_type")
    (item,) = load_items(vqa, tmp_path, "val2014")
    assert (item.group, item.fields, item.answers) == ("other", {"question": "what?"}, ("red",))


def test_vizwiz(tmp_path: Path) -> None:
    entries = [{"image": "V_0.jpg", "question": "what?", "answers": [{"answer": "soup"}] * 10, "answer_type": "other"}]
    (tmp_path / "val.json").write_text(json.dumps(entries))
    picture(tmp_path / "val/V_0.jpg")
    (item,) = load_items(task("vizwiz", "{split}.json", "{split}/{file_name}"), tmp_path, "val")
    assert len(item.answers) == 10
    (tmp_path / "test.json").write_text(json.dumps([{"image": "V_0.jpg", "question": "what?"}]))
    with pytest.raises(ValueError, match="not public"):
        load_items(task("vizwiz", "{split}.json", "{split}/{file_name}"), tmp_path, "test")


def test_parquet_has_the_columns_of_json_lines(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"id": "1", "question": "q?", "answers": ["a", "b"], "group": None}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "test.parquet")
    (item,) = load_items(task("parquet", "{split}.parquet"), tmp_path, "test")
    assert (item.fields, item.answers, item.group) == ({"question": "q?"}, ("a", "b"), "")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "test.jsonl:2: not valid JSON"),
        ('{"question": "q"}', 'something under "answers"'),
        ('{"answers": "x"}', "must be a list"),
        ('{"answers": ["x"], "images": "1.jpg"}', "\"images\" must be a list, not '1.jpg'"),
        ('{"answers": ["x"], "candidates": "yes"}', '"candidates" must be a list'),
        ("[1]", "test.jsonl:2: expected a JSON object"),
        ('{"id": "1", "answers": ["x"]}', "item id 1 occurs twice"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "test.jsonl").write_text('{"id": "1", "answers": ["x"]}\n' + line + "\n")
    with pytest.raises(ValueError, match=message):
        load_items(task("jsonl", "{split}.jsonl"), tmp_path, "test")


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("karpathy", {"annotations": []}, 'with a list under "images"'),
        ("karpathy", {"images": [{"filename": "a.jpg"}]}, 'entry 0 .* has no "split"'),
        ("vizwiz", [{"image": "a.jpg"}], 'entry 0 .* has no "question"'),
        (
            "vizwiz",
            [{"image": "a.jpg", "question": "?", "answers": [{"text": "b"}]}],
            "question a.jpg: an answer is None",
        ),
        ("captions", {"annotations": [{"image_id": 1, "caption": 3}]}, '"caption" is 3, not text'),
        ("captions", {"annotations": [{"image_id": 1, "caption": "a"}], "images": [{"file_name": "a"}]}, 'no "id"'),
    ],
)
def test_another_file_than_the_format_says(tmp_path: Path, kind: str, content: Any, message: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_items(task(kind, "a.json"), tmp_path, "test")


def test_missing_images_say_what_to_change(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"images": ["1.jpg"], "answers": ["x"]}')
    with pytest.raises(FileNotFoundError, match=r"1 of 1 images .*images/1\.jpg; .*--set dataset\.images="):
        load_items(task("jsonl", "{split}.jsonl", "images/{file_name}"), tmp_path, "test")


def test_empty_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"test\.jsonl: no such file"):
        load_items(task("jsonl", "{split}.jsonl"), tmp_path, "test")
    (tmp_path / "test.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="no items"):
        load_items(task("jsonl", "{split}.jsonl"), tmp_path, "test")
    with pytest.raises(ValueError, match=r"may use \{split\} only"):
        load_items(task("jsonl", "{spilt}.jsonl"), tmp_path, "test")


def test_a_question_without_annotation_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text(json.dumps({"questions": [{"question_id": 1, "image_id": 1, "question": "?"}]}))
    (tmp_path / "a.json").write_text(json.dumps({"annotations": []}))
    with pytest.raises(ValueError, match="question 1 has no annotation"):
        load_items(task("vqa", "a.json", questions="q.json"), tmp_path, "test")
