"""Evaluation data in our shard format: documents become items, and the tasks run on held-out easy-VQA documents."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image as Picture

from kosmos import KosmosForConditionalGeneration, KosmosProcessor
from kosmos_data import Document, Image, Span, Text, write_shards
from kosmos_eval import corpus_items, tasks
from kosmos_eval.evaluate import evaluate
from kosmos_eval.readers import load_items


def png(shade: int) -> Image:
    buffer = io.BytesIO()
    Picture.new("RGB", (16, 16), (shade, 0, 255 - shade)).save(buffer, "PNG")
    return Image(buffer.getvalue())


def question(text: str) -> Text:
    return Text(f"Question: {text} Answer:", supervised=False)


def test_each_kind_of_document(tmp_path: Path) -> None:
    a, b = png(1), png(2)
    documents = [
        Document("two", [a, question("what color is it?"), Text(" red\n"), question("is it?"), Text(" yes")]),
        Document("series", [a, question("one?"), Text(" yes\n"), b, question("two?"), Text(" no")]),
        Document("pair", [a, b, Text("An image of a red circle")]),
        Document("pair2", [a, b, Text("An image of "), Text("two")]),
        Document("other", [b, Text("A picture of a circle")]),
        Document("span", [Span("is it?"), Text(" no")]),
        Document("plain", [Text("words and words")]),
    ]
    write_shards(tmp_path / "c", documents, 3)
    items = {item.id: item for item in corpus_items.read(tmp_path / "c", lead="An image of")}
    assert list(items) == ["two", "two#2", "series", "series#2", "pair", "span"]
    assert items["two"].answers == ("red",)
    assert items["two#2"].fields == {"question": "Question: is it? Answer:"}
    assert items["two#2"].images == items["two"].images
    assert items["series#2"].images != items["series"].images == items["two"].images
    assert items["pair"].answers == ("a red circle", "two")  # the captions of the same images
    assert items["pair"].images == items["two"].images + items["series#2"].images
    assert items["span"].fields == {"question": "is it?"}
    assert items["two"].images[0].read_bytes() == a.data
    assert [item.answers for item in corpus_items.read(tmp_path / "c") if item.id == "plain"] == [("words and words",)]


def test_tasks_on_shards(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, toy_data: Path, tmp_path: Path
) -> None:
    """The same questions and images as VQAv2 files and as shards get the same answers."""
    for split in ("train", "test"):
        folder = toy_data / split
        answers = {one["question_id"]: one["answers"][0]["answer"]
                   for one in json.loads((folder / "vqa_annotations.json").read_text())["annotations"]}  # fmt: skip
        documents = [
            Document(
                str(one["question_id"]),
                [
                    Image((folder / f"images/{one['image_id']}.png").read_bytes()),
                    question(one["question"]),
                    Text(f" {answers[one['question_id']]}"),
                ],
            )
            for one in json.loads((folder / "vqa_questions.json").read_text())["questions"]
        ]
        write_shards(tmp_path / split, documents, 10)
    evaluate(model, processor, "shards_vqa", tmp_path, shots=(0,), contexts=("image+text",), out=tmp_path / "a")
    rows = evaluate(model, processor, "shards_vqa", tmp_path, shots=(2,), contexts=("shuffled",))
    assert rows[0]["n"] == 24
    evaluate(model, processor, tasks.load("easy_vqa", ["decoding.max_new_tokens=10"]), toy_data, out=tmp_path / "b")
    files = ("a/samples/model/shards_vqa-0shot-image+text.jsonl", "b/samples/model/easy_vqa-0shot-image+text.jsonl")
    read = [(tmp_path / file).read_text().splitlines() for file in files]
    for one, other in zip(*read, strict=True):
        first, second = json.loads(one), json.loads(other)
        assert (first["id"], first["prompt"], first["prediction"]) == (
            second["id"], second["prompt"], second["prediction"]
        )  # fmt: skip
        assert first["images"][0]["sha256"] == second["images"][0]["sha256"]


def test_text_and_captions_on_shards(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, tmp_path: Path
) -> None:
    write_shards(tmp_path / "text", [Document("t", [Text("a red circle is it a blue square")])], 10)
    row, _ = evaluate(model, processor, tasks.load("shards_text", ["dataset.annotations=text"]), tmp_path)
    assert 0 < row["value"] < 100
    assert row["baselines"] == {"chance": 8}
    captions = [
        Document(str(i), [png(i), Text(f"An image of a {name} circle")]) for i, name in enumerate(["red", "blue"])
    ]
    write_shards(tmp_path / "pairs", captions, 10)
    rows = evaluate(model, processor, tasks.load("shards_caption", ["dataset.annotations=pairs"]), tmp_path)
    models = ("model", "constant answer")  # one corpus, so no training split
    assert [(row["model"], row["metric"]) for row in rows] == [
        (m, metric) for m in models for metric in ("cider", "bleu_1")
    ]


def test_a_broken_document_and_a_missing_corpus_are_named(tmp_path: Path) -> None:
    task = tasks.load("shards_vqa")
    with pytest.raises(FileNotFoundError, match="test"):
        load_items(task, tmp_path, "test")
    write_shards(tmp_path / "test", [Document("one", [png(1), question("what?"), Text(" red")])], 10)
    (shard,) = (tmp_path / "test").glob("*.tar")
    shard.write_bytes(shard.read_bytes().replace(b'"segments"', b'"sogments"'))
    with pytest.raises(ValueError, match=r"document 0.*skips nothing"):
        load_items(task, tmp_path, "test")
