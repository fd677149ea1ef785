"""Items from a corpus in our shard format: the questions, captions and texts that documents hold.

A document is read as training reads it. Text marked ``supervised: false`` (and text for the span encoder) is a
question, the supervised text behind it the answer; a document without questions is a caption of its images, or plain
text. An item sees the images, sounds and videos that stand directly before its text. The captions of the same images
become one item with several references.

Images leave the tar files for a temporary folder, named by their content, because everything behind reads files; the
folder goes when the process ends.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

from kosmos.segments import Audio, Fused, Video
from kosmos_data import BadSample, Corpus
from kosmos_data.document import Document, Entity, Image, Persona, Text, file_suffix

from .items import Item

# (images, question, answer) of one turn
Turn = tuple[tuple[Path, ...], str, str]


def read(folder: Path, lead: str = "") -> list[Item]:
    """All items of a corpus folder, in stored order; ids are the documents' keys, ``KEY#2`` for a second turn.

    Args:
        lead: keep only texts without a question that begin so, and leave it out of the reference
            (``An image of``, which the prompt says).

    Raises:
        FileNotFoundError, ValueError: no corpus here, or a document that cannot be read.
    """
    items: dict[object, Item] = {}
    for document in _documents(Corpus(folder)):
        for number, (images, question, text) in enumerate(turns(document), start=1):
            name = document.key if number == 1 else f"{document.key}#{number}"
            answer = (text if question else text.removeprefix(lead)).strip()
            if not answer or not (question or text.startswith(lead)):
                continue
            place = name if question or not images else images
            if place in items:  # one more caption of these images
                items[place] = replace(items[place], answers=(*items[place].answers, answer))
            else:
                items[place] = Item(name, {"question": question.strip()}, images, (answer,))
    return list(items.values())


def _documents(corpus: Corpus) -> Iterator[Document]:
    for index in range(len(corpus)):
        try:
            yield corpus[index]
        except BadSample as error:
            raise ValueError(
                f"{corpus.shard_of(index)}, document {index}: {error}; evaluation skips nothing"
            ) from error


def turns(document: Document) -> Iterator[Turn]:
    """A document's turns in reading order."""
    images: list[Path] = []
    question, answer = "", ""
    after_text = False
    for segment in document.segments:
        if isinstance(segment, Text) and segment.supervised:
            answer, after_text = answer + segment.text, True
            continue
        if answer:
            yield tuple(images), question, answer
            question, answer = "", ""
        if isinstance(segment, Image | Audio | Video):
            images, after_text = [*([] if after_text else images), _file(segment)], False
        elif isinstance(segment, (Entity, Persona, Fused)):
            named = {Entity: f"the entity {segment}", Persona: f"the {segment}"}
            what = named.get(type(segment)) or "a picture with a text of its own"
            raise ValueError(f"{document.key} has {what}, which a task cannot ask about")
        else:
            question, after_text = question + segment.text, True
    if answer:
        yield tuple(images), question, answer


def _file(image: Image | Audio | Video) -> Path:
    path = _folder() / f"{hashlib.sha256(image.data).hexdigest()[:24]}.{file_suffix(image.data)}"
    if not path.exists():
        path.write_bytes(image.data)
    return path


def _folder() -> Path:
    return Path(_temporary().name)


@cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="kosmos-eval-")
