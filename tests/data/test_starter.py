"""Recipe starter: what it promises about splits, formats and answers, on the real packages."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from kosmos_data import Corpus, Text, recipes
from kosmos_data.recipes import easy_vqa, scenes, starter

pytest.importorskip("easy_vqa")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("starter") / "corpus"
    fewer = {"few_shot_documents": 200, "contrast_documents": 100, "caption_series_documents": 60}
    recipes.make("starter", root, [f"{name}={value}" for name, value in (fewer | {"captions_per_image": 1}).items()])
    return root


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_no_test_image_is_in_any_training_shard(built: Path) -> None:
    test = {hashlib.sha256(path.read_bytes()).digest() for path in (built / "eval/test/images").iterdir()}
    assert len(test) == 1000
    trained = {
        hashlib.sha256(image.data).digest()
        for name in ("pairs", "qa", "presence", "negation", "interleaved")
        for document in Corpus(built / name)
        for image in document.images
    }
    assert len(trained) > 3900
    assert not trained & test
    assert read_json(built / "report.json")["images_in_both_splits"] == 0


def test_every_training_question_is_asked_once_with_its_answer(built: Path) -> None:
    asked: Counter = Counter()
    firsts: Counter = Counter()
    for document in Corpus(built / "qa"):
        turns = list(zip(document.segments[1::2], document.segments[2::2], strict=True))
        assert 1 <= len(turns) <= 4
        for question, answer in turns:
            assert not question.supervised
            assert answer.supervised
            text = re.fullmatch(r"Question: (.*) Answer:", question.text).group(1)
            asked[document.meta["image"], text, answer.text.strip()] += 1
        assert [answer.text.endswith("\n") for _, answer in turns] == [True] * (len(turns) - 1) + [False]
        firsts[turns[0][0].text] += 1
    expected = Counter((p.number, q, a) for p in easy_vqa.load("train") for q, a in p.questions)
    assert asked == expected
    assert firsts.total() > 15_000


@pytest.mark.parametrize(("name", "negated_share"), [("presence", 0.0), ("negation", 0.5)])
def test_yes_and_no_are_equally_likely_whatever_is_named(built: Path, name: str, negated_share: float) -> None:
    pictures = {picture.number: picture for picture in easy_vqa.load("train")}
    answers: dict[tuple[str, bool], Counter] = {}
    published = {question for picture in pictures.values() for question, _ in picture.questions}
    for document in Corpus(built / name):
        asked, answer = document.segments[1:]
        question = re.fullmatch(r"Question: (.*) Answer:", asked.text).group(1)
        picture, said = pictures[document.meta["image"]], answer.text.strip()
        assert (asked.supervised, answer.supervised) == (False, True)
        assert question in published
        # With this answer the published ones still say the same: it contradicts none of them.
        for values, own in ((easy_vqa.SHAPES, picture.shape), (easy_vqa.COLORS, picture.color)):
            assert easy_vqa.settle([*picture.questions, (question, said)], values) == own
        words = set(re.findall(r"\w+", question))
        named = next(value for value in easy_vqa.SHAPES + easy_vqa.COLORS if value in words)
        answers.setdefault((named, easy_vqa.is_negated(question)), Counter())[said] += 1
    assert len(answers) == (22 if negated_share else 11)
    counted = sum(counts.total() for counts in answers.values())
    assert counted > 10_000
    negated = sum(counts.total() for (_, turned), counts in answers.items() if turned)
    assert negated / counted == pytest.approx(negated_share, abs=0.02)
    for counts in answers.values():
        assert counts["yes"] / counts.total() == pytest.approx(0.5, abs=0.1)


def test_presence_of_an_unsettled_picture_is_refused() -> None:
    picture = easy_vqa.Picture(5, Path("5.png"), [], None, "red")
    with pytest.raises(ValueError, match="picture 5 has no settled shape"):
        easy_vqa.presence(picture, False, random.Random(0))


def test_captions_agree_with_every_answer(built: Path) -> None:
    """Slow check the other way round: a caption's shape and colour must be what the questions say."""
    pictures = {picture.number: picture for picture in easy_vqa.load("train")}
    captioned = 0
    for document in Corpus(built / "pairs"):
        caption = document.segments[1].text
        words = set(re.findall(r"\w+", caption))
        for question, answer in pictures[document.meta["image"]].questions:
            if answer in easy_vqa.SHAPES and words & set(easy_vqa.SHAPES):
                assert answer in words
            if answer in easy_vqa.COLORS and words & set(easy_vqa.COLORS):
                assert answer in words
            named = re.search(r"(is there|is|present|contain) (a|an) (\w+)( shape)?", question)
            if named and answer in ("yes", "no") and not re.search(r"\b(no|not)\b", question):
                group = easy_vqa.SHAPES if named.group(3) in easy_vqa.SHAPES else easy_vqa.COLORS
                if words & set(group):
                    assert (named.group(3) in words) == (answer == "yes")
        captioned += 1
    assert captioned > 3900


@pytest.mark.parametrize(
    ("questions", "shape"),
    [
        ([("what shape is present?", "circle")], "circle"),
        ([("is there a circle?", "yes")], "circle"),
        ([("is there not a circle?", "no")], "circle"),
        ([("is no circle present?", "yes"), ("is there a triangle?", "no")], "rectangle"),
        ([("is there a circle?", "no")], None),
        ([("what is the color of the triangle?", "red")], "triangle"),
    ],
)
def test_shapes_follow_from_answers(questions: list, shape: str | None) -> None:
    assert easy_vqa.settle(questions, easy_vqa.SHAPES) == shape


def test_interleaved_documents_are_few_shot_prompts(built: Path) -> None:
    kinds: Counter = Counter()
    for document in Corpus(built / "interleaved"):
        images = [hashlib.sha256(image.data).digest() for image in document.images]
        assert 2 <= len(images) <= 9
        assert len(set(images)) == len(images) or document.meta["kind"] == "contrast"
        text = "".join(segment.text if isinstance(segment, Text) else "#" for segment in document.segments)
        question = r"#Question: [^\n]+\? Answer: \w+"
        caption = r"#An image of a \w+ \w+"
        pattern = caption if document.meta["kind"] == "captions" else question
        assert re.fullmatch(rf"{pattern}(\n{pattern})*", text)
        if document.meta["kind"] == "contrast":
            assert len(set(re.findall(r"Question: ([^\n]+)\?", text))) == 1
        kinds[document.meta["kind"]] += 1
    assert kinds == {"questions": 200, "contrast": 100, "captions": 60}


def test_evaluation_files_are_in_the_published_formats(built: Path) -> None:
    for split, count in (("train", 38575), ("test", 9673)):
        folder = built / "eval" / split
        questions, annotations = (read_json(folder / f"vqa_{name}.json") for name in ("questions", "annotations"))
        assert len(questions["questions"]) == len(annotations["annotations"]) == count
        ids = [question["question_id"] for question in questions["questions"]]
        assert len(set(ids)) == count
        assert ids == [annotation["question_id"] for annotation in annotations["annotations"]]
        first = annotations["annotations"][0]
        assert [answer["answer_id"] for answer in first["answers"]] == list(range(1, 11))
        assert {annotation["question_type"] for annotation in annotations["annotations"]} == {
            "yes/no",
            "shape",
            "color",
        }
        captions = read_json(folder / "captions.json")
        assert all((folder / "images" / image["file_name"]).exists() for image in captions["images"])
        assert len(captions["annotations"]) == 3 * len(captions["images"])


def test_held_out_speeches_are_not_trained_on(built: Path) -> None:
    held_out = {json.loads(line)["id"] for line in (built / "eval/test/text.jsonl").read_text().splitlines()}
    trained = {document.meta["speech"] for document in Corpus(built / "text")}
    assert held_out
    assert not held_out & trained


def test_the_seed_changes_the_shuffle_and_nothing_else_does(tmp_path: Path) -> None:
    few = {"few_shot_documents": 3, "contrast_documents": 3, "caption_series_documents": 2}
    pictures = easy_vqa.load("train")[:60]
    images = {picture.number: picture.path.read_bytes() for picture in pictures}
    once, again, other = (
        list(starter.interleaved(pictures, images, starter.Options(seed=seed, **few))) for seed in (0, 0, 1)
    )
    assert once == again != other


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no recipe 'startr'; known: .*starter"):
        recipes.make("startr", tmp_path / "x")
    with pytest.raises(ValueError, match="did you mean 'max_images'"):
        recipes.make("starter", tmp_path / "x", ["max_image=3"])
    (tmp_path / "full").write_text("")
    with pytest.raises(ValueError, match="is not empty"):
        recipes.make("starter", tmp_path)


def test_questions_about_contexts(built: Path) -> None:
    """The answer stands in the context, no test context is trained on, and no context is read in both ways."""
    items = {
        split: [json.loads(line) for line in (built / "eval" / split / "reading.jsonl").read_text().splitlines()]
        for split in ("train", "test")
    }
    assert [len(rows) for rows in items.values()] == [1000, 1000]
    for item in items["test"]:
        sentence = next(s for s in item["context"].split(".") if _asked(item["question"]) <= set(s.lower().split()))
        assert set(item["answers"][0].split()) <= set(sentence.lower().split())
    spans = [document.segments[1].text for document in Corpus(built / "reading_encoded")]
    texts = [document.segments[1] for document in Corpus(built / "reading")]
    assert all(isinstance(text, Text) and not text.supervised for text in texts)
    read = {text.text.strip() for text in texts}
    assert len(spans) == len(texts) == 6000
    tested = {item["context"] for item in items["test"]}
    assert len(tested) > 900
    assert not tested & (read | set(spans))
    assert not read & set(spans)
    assert Counter(item["group"] for item in items["test"]).keys() == {"color", "shape", "place"}


def _asked(question: str) -> set[str]:
    """The words of a question that only the sentence in question has: its place, or its colour."""
    return set(question.rstrip("?").split()) & {"left", "right", "middle", "top", "bottom", *easy_vqa.COLORS}


def test_a_scene_has_no_more_things_than_places() -> None:
    with pytest.raises(ValueError, match="a scene has 2 to 5 things, one a place; got 6"):
        next(scenes.scenes(0, 6, test=False))
