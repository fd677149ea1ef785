"""Every task that comes with the package runs: on data in the layout that its YAML names, or on data made here."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from kosmos import KosmosForConditionalGeneration, KosmosProcessor
from kosmos_data.recipes import composed, pictures, starter
from kosmos_data.recipes.evaluation_files import write_lines
from kosmos_data.recipes.picture_sources import Named
from kosmos_eval import prompts, suite, tasks
from kosmos_eval.evaluate import evaluate
from kosmos_eval.readers import load_items
from kosmos_eval.suite import webpages

# Tested elsewhere: test_published.py, test_shards.py, test_suite.py, test_evaluate.py, test_spans.py, test_clips.py.
PUBLISHED = {
    "boolq", "cb", "rte", "copa", "wic", "wsc", "piqa", "hellaswag", "winogrande", "winograd", "storycloze",
    "hateful_memes", "glm_boolq", "glm_cb", "glm_rte", "glm_copa", "glm_wic",
    "multirc", "record", "glm_wsc", "glm_multirc", "glm_record",
}  # fmt: skip
ELSEWHERE = {
    *PUBLISHED, *suite.MAKERS, "shards_vqa", "shards_caption", "shards_text", "easy_vqa", "easy_vqa_caption",
    "rendered_text_cot", "described_classes_plain", "relative_size_encoded",
    "reading_encoded", "sst2", "picture_binding", "story", "story_likelihood", "story_prompts",
    "ball_swaps", "ball_swaps_cot", "spoken_names", "spoken_languages", "animation_names", "still_names",
}  # fmt: skip


def picture(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (shade, 90, 0)).save(path)


def karpathy(root: Path, name: str) -> None:
    entries = []
    for i, split in enumerate(["test", "test", "train", "train"]):
        place = {"filepath": f"{split}2014", "cocoid": i} if "coco" in name else {}
        entries.append(
            {"imgid": i, "filename": f"{i}.jpg", "split": split, "sentences": [{"raw": "a red circle"}]} | place
        )
        picture(root / "images" / place.get("filepath", "") / f"{i}.jpg", 60 * i)
    (root / f"dataset_{name.removesuffix('_caption')}.json").write_text(json.dumps({"images": entries}))


def vqa(root: Path, questions: str, annotations: str, image: str, splits: tuple[str, str]) -> None:
    for start, split in zip((1, 11), splits, strict=True):
        ids = [{"question_id": 10 * i, "image_id": i} for i in range(start, start + 4)]
        for one in ids:
            picture(root / image.format(split=split, image_id=one["image_id"]), 15 * one["image_id"])
        for file, key, more in (
            (questions, "questions", {"question": "what color is it?"}),
            (annotations, "annotations", {"answer_type": "other", "answers": [{"answer": "red", "answer_id": 1}] * 10}),
        ):
            path = root / file.format(split=split)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({key: [one | more for one in ids]}))


def coco_vqa(prefix: str) -> Callable[[Path, str], None]:
    def write(root: Path, name: str) -> None:
        files = f"{prefix}OpenEnded_mscoco_{{split}}_questions.json", f"{prefix}mscoco_{{split}}_annotations.json"
        vqa(root, *files, "{split}/COCO_{split}_{image_id:012d}.jpg", ("val2014", "train2014"))

    return write


def own_vqa(root: Path, name: str) -> None:
    vqa(root, "{split}/questions.json", "{split}/annotations.json", "{split}/images/{image_id}.jpg", ("test", "train"))


def own_captions(root: Path, name: str) -> None:
    for split, start in (("test", 0), ("train", 4)):
        images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(start, start + 4)]
        for image in images:
            picture(root / split / "images" / str(image["file_name"]), 30 * int(str(image["id"])))
        captions = [{"image_id": image["id"], "id": image["id"], "caption": "a red circle"} for image in images]
        (root / split / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))


def vizwiz(root: Path, name: str) -> None:
    for split, shade in (("val", 10), ("train", 200)):
        picture(root / split / f"{split}.jpg", shade)
        entry = {"image": f"{split}.jpg", "question": "what is it?", "answers": [{"answer": "soup"}] * 10}
        (root / f"{split}.json").write_text(json.dumps([entry]))


def nocaps(root: Path, name: str) -> None:
    picture(root / "val/a.jpg", 5)
    captions = [{"image_id": 0, "id": i, "caption": "a red circle"} for i in range(2)]
    content = {"images": [{"id": 0, "file_name": "a.jpg"}], "annotations": captions}
    (root / "nocaps_val_4500_captions.json").write_text(json.dumps(content))


def classes(root: Path, name: str) -> None:
    for i, label in enumerate(["red circle", "blue square"]):
        picture(root / f"images/{i}.jpg", 50 * i)
        with (root / "test.jsonl").open("a") as file:
            file.write(json.dumps({"images": [f"{i}.jpg"], "answers": [label]}) + "\n")


def texts(root: Path, name: str) -> None:
    for split, rows in (("test", ["red", "blue", "red"]), ("train", ["red", "green", "red", "red"])):
        lines = [{"text": f"is it a {label} circle {split} {i}", "label": label} for i, label in enumerate(rows)]
        (root / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def speeches(root: Path, name: str) -> None:
    (root / "test").mkdir()
    (root / "test/text.jsonl").write_text(json.dumps({"id": "a", "text": "a red circle"}))


def named_pictures(root: Path, name: str) -> None:
    """What recipe ``pictures`` writes, by its own writer: ten animals and ten fruits, a picture of noise each."""
    rng = np.random.default_rng(0)
    for split, first in (("test", 0), ("train", 10)):
        shown = []
        for number in range(first, first + 10):
            for group, words in (("animals", "red circle"), ("food", "blue square")):
                path = root / f"{split}-{group}{number}.png"
                Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)
                phrase = f"{words} {chr(97 + number)}{group[0]}"
                shown.append(Named(f"x/{group}{number}", path, phrase, phrase, (f"k{number}", "thing"), group=group))
        pictures.write_evaluation(root / split, shown, Counter(thing=20))


def contexts(root: Path, name: str) -> None:
    """What recipe ``starter`` writes, by its own writer."""
    for split in ("test", "train"):
        (root / split).mkdir()
        items = starter.reading_items(starter.Options(reading_test=4), split == "test")
        write_lines(root / split / "reading.jsonl", items)


def scenes(root: Path, name: str) -> None:
    """What recipe ``composed`` writes, by its own writer, of eight squares of noise."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (8, 16, 16, 3), dtype=np.uint8)
    names = [f"{color} {shape}" for color in ("red", "blue", "green", "black") for shape in ("circle", "square")]
    things = [composed.Thing(one, one, Image.fromarray(own)) for one, own in zip(names, pixels, strict=True)]
    options = composed.Options(things=8, held_out_every=2, questions=48, side=24)
    composed.write_evaluation(root / "test", composed.Split(things, options), True)


# task → (writes its data, shots)
LAYOUTS: dict[str, tuple[Callable[[Path, str], None], tuple[int, ...]]] = {
    "coco_caption": (karpathy, (0, 2)),
    "flickr30k_caption": (karpathy, (0, 2)),
    "vqav2": (coco_vqa("v2_"), (0, 2)),
    "okvqa": (coco_vqa(""), (0, 2)),
    "vizwiz": (vizwiz, (0, 1)),
    "vqa": (own_vqa, (0, 2)),
    "caption": (own_captions, (0, 2)),
    "nocaps": (nocaps, (0,)),
    "image_classification": (classes, (0,)),
    "text_classification": (texts, (0, 2)),
    "starter_text": (speeches, (0,)),
    "picture_names": (named_pictures, (0, 2)),
    "picture_names_described": (named_pictures, (0, 2)),
    "picture_captions": (named_pictures, (0, 2)),
    "picture_vqa": (named_pictures, (0, 2)),
    "reading": (contexts, (0, 2)),
    "reading_closed": (contexts, (0, 2)),
    "composed_pairs": (scenes, (0,)),
    "composed_counts": (scenes, (0,)),
    "composed_more": (scenes, (0,)),
}


def test_no_task_is_left_untested() -> None:
    assert set(tasks.known()) == {*LAYOUTS, *ELSEWHERE}


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_task_runs_on_its_published_layout(
    name: str, model: KosmosForConditionalGeneration, processor: KosmosProcessor, tmp_path: Path
) -> None:
    write, shots = LAYOUTS[name]
    write(tmp_path, name)
    rows = evaluate(model, processor, tasks.load(name), tmp_path, shots=shots)
    mine = [row for row in rows if row["model"] == "model" and row["question_type"] is None]
    assert [row["shots"] for row in mine if row["metric"] == tasks.load(name).metrics[0]] == list(shots)
    assert all(row["n"] >= 1 for row in mine)
    assert all(row["baselines"] for row in mine if row["metric"] == tasks.load(name).metrics[0]), "nothing to beat"


def test_of_two_sentences_words_alone_get_one_half(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, tmp_path: Path
) -> None:
    """Exactly: of a picture and its counterpart a model that does not look is right about one."""
    scenes(tmp_path, "")
    contexts = ("image+text", "shuffled", "text-only")
    rows = evaluate(model, processor, "composed_pairs", tmp_path, contexts=contexts)
    whole = {row["context"]: row for row in rows if row["model"] == "model" and row["question_type"] is None}
    assert whole["text-only"]["value"] == 0.5
    assert whole["image+text"]["baselines"] == {"shuffled": whole["shuffled"]["value"], "chance": 0.5}
    wordings = {row["question_type"] for row in rows if row["context"] == "image+text"} - {None}
    assert wordings == {"to the left of", "to the right of", "above", "below"}
    counts = evaluate(model, processor, "composed_counts", tmp_path)
    assert counts[0]["baselines"] == pytest.approx({"chance": 0.2})


def test_pictures_are_asked_with_their_controls(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, tmp_path: Path
) -> None:
    """Eight names each, chance 1/8; and no question about a picture can be answered better than half without it."""
    named_pictures(tmp_path, "")
    contexts = ("image+text", "shuffled", "text-only")
    rows = evaluate(model, processor, "picture_names", tmp_path, contexts=contexts, out=tmp_path / "out")
    whole = [row for row in rows if row["metric"] == "accuracy" and row["model"] == "model"]
    assert [row["context"] for row in whole] == list(contexts)
    assert all(row["baselines"]["chance"] == 0.125 and row["low"] <= row["value"] <= row["high"] for row in whole)
    assert {row["question_type"] for row in rows} >= {"animals", "food"}
    lines = (tmp_path / "out/samples/model/picture_names-0shot-text-only.jsonl").read_text().splitlines()
    scores = [score for line in lines for score in json.loads(line)["scores"]]
    assert scores == pytest.approx([0.0] * len(scores), abs=1e-4), "without its image a name has no information"
    rows = evaluate(model, processor, "picture_vqa", tmp_path)
    asked = {row["question_type"]: row["value"] for row in rows if row["model"] == "question only"}
    assert asked["yes/no"] == 0.5


def test_a_described_name_is_ranked_by_its_description(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, tmp_path: Path
) -> None:
    """The answer is the name, what is scored is its group and keywords; names without a description are refused."""
    named_pictures(tmp_path, "")
    task = tasks.load("picture_names_described")
    item = load_items(task, tmp_path, "test")[0]
    place = item.candidates.index(item.answers[0])
    assert item.wordings[place].startswith(f"{item.group}, thing, k")
    assert prompts.continuation(task, item, item.answers[0]) == f" {item.wordings[place]}"
    assert prompts.continuation(tasks.load("picture_names"), item, item.answers[0]) == f" {item.answers[0]}"
    rows = evaluate(model, processor, task, tmp_path, out=tmp_path / "out")
    assert rows[0]["baselines"]["chance"] == 0.125
    lines = (tmp_path / "test/names.jsonl").read_text().splitlines()
    bare = [{key: value for key, value in json.loads(line).items() if key != "wordings"} for line in lines]
    write_lines(tmp_path / "test/names.jsonl", bare)
    with pytest.raises(ValueError, match=r'decoding.described, but item x/\S+ has no "wordings"'):
        evaluate(model, processor, task, tmp_path)
    write_lines(tmp_path / "test/names.jsonl", [bare[0] | {"wordings": ["one"]}])
    with pytest.raises(ValueError, match="1 wordings for 8 candidates; give one for each"):
        evaluate(model, processor, task, tmp_path)


def test_class_names_give_the_chance(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, tmp_path: Path
) -> None:
    classes(tmp_path, "image_classification")
    rows = evaluate(model, processor, "image_classification", tmp_path)
    assert rows[0]["baselines"] == {"chance": 0.5}


def test_labels_of_the_split_are_the_candidates_and_give_the_chance(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, tmp_path: Path
) -> None:
    texts(tmp_path, "text_classification")
    (row, *_) = evaluate(model, processor, "text_classification", tmp_path, out=tmp_path / "out")
    assert row["baselines"]["chance"] == 0.5  # red and blue; green is in the training split only
    assert row["baselines"]["majority answer"] == pytest.approx(2 / 3)
    line = (tmp_path / "out/samples/model/text_classification-0shot-image+text.jsonl").read_text().splitlines()[0]
    assert len(json.loads(line)["scores"]) == 2


def websrc(root: Path, words: int = 3) -> None:
    """Two websites of one domain as WebSRC is released; one is for validation."""
    (root / "dataset_split.json").write_text(json.dumps({"dev": ["bo02"], "test": ["bo03"]}))
    for number in ("01", "02"):
        folder = root / "book" / number
        page = f"{number}00007"
        picture(folder / f"processed_data/{page}.png", int(number))
        body = f"<style>p {{}}</style><p>Price:\n<b>$5</b></p><script>x()</script> {'more ' * words}<p>end"
        (folder / f"processed_data/{page}.html").write_text(f"<html>{body}</html>")
        rows = [
            {"question": "What is the price?", "id": f"bo{page}{i:05d}", "element_id": "4", "answer": text}
            for i, text in ((1, "$5"), (1, "5"), (2, "yes"))
        ]
        with (folder / "dataset.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


def test_websrc_as_released(tmp_path: Path) -> None:
    websrc(tmp_path)
    assert suite.make("webpages", tmp_path / "out", source=tmp_path) == 2
    items = [json.loads(line) for line in (tmp_path / "out/test.jsonl").read_text().splitlines()]
    assert items[0] == {
        "id": "bo020000700001", "images": ["bo0200007.png"], "page": "Price: $5 more more more end",
        "question": "What is the price?", "answers": ["$5", "5"],
    }  # fmt: skip
    assert items[1]["answers"] == ["yes"]
    assert webpages.page_text("a&amp;b <noscript>no</noscript>c") == "a&b c"


def test_a_page_too_long_loses_its_end_and_that_is_said(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(processor, "max_length", 700)
    websrc(tmp_path, words=400)
    suite.make("webpages", tmp_path / "out", source=tmp_path)
    console = Console(record=True, width=200, quiet=False, file=(tmp_path / "log").open("w"))
    rows: list[Any] = evaluate(model, processor, "webpages", tmp_path / "out", out=tmp_path / "run", console=console)
    assert rows[0]["items_shortened"] == 2
    assert "2 of 2 prompts lost the end of their 'page'" in console.export_text()
    for line in (tmp_path / "run/samples/model/webpages-0shot-image+text.jsonl").read_text().splitlines():
        assert "Context: Price: $5 more" in json.loads(line)["prompt"]
        assert json.loads(line)["prompt"].endswith("Q: What is the price? A:")
        assert json.loads(line)["shortened"] is True
    with pytest.raises(ValueError, match=r"item bo020000700001: prompt and answer take \d+ tokens, the model 700"):
        evaluate(model, processor, tasks.load("webpages", ["prompt.shorten="]), tmp_path / "out")
