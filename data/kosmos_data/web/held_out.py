"""Evaluation texts and images that must not get into a corpus, in a form in which pages can be checked against them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kosmos.read_json import parse_json, read_utf8

from ..document import PICTURES
from ..errors import BadSample
from ..index import INDEX_NAME
from ..overlap import NGRAM, grams, text_grams, words
from ..reader import Corpus
from .draft import Draft, Picture, look_at
from .hamming import hamming
from .page import ImageReference
from .rules import HeldOut

logger = logging.getLogger(__name__)
_PICTURES = {f".{kind}" for kind in PICTURES}


class HeldOutIndex:
    """The n-grams and image hashes of evaluation data.

    Raises:
        FileNotFoundError: a file or folder does not exist.
        ValueError: a text file of unknown kind or malformed JSON, or a folder without pictures.
    """

    def __init__(self, held_out: HeldOut) -> None:
        self.image_bits = held_out.image_bits
        self.grams: set[int] = set()
        self.lengths: set[int] = set()  # of the runs of words that are in ``grams``
        for path in held_out.texts:
            self._add_texts(Path(path))
        self.sha256: set[str] = set()
        phashes: set[int] = set()
        for folder in held_out.images:
            phashes |= self._add_images(Path(folder))
        self.phashes = np.array(sorted(phashes), dtype=np.uint64)

    def reason(self, draft: Draft) -> str | None:
        """Why the page must not be kept, or None."""
        return self.found_in(draft.text, draft.pictures)

    def found_in(self, text: str, pictures: Sequence[Picture]) -> str | None:
        """Why what has this text and these pictures must not be kept, or None."""
        if self.grams and not self.grams.isdisjoint(grams(words(text), self.lengths)):
            return "shares 13 words with an evaluation text"
        for picture in pictures if self.sha256 else ():
            if picture.sha256 in self.sha256 or self._near(picture.phash):
                return "shows an evaluation image"
        return None

    def _near(self, phash: int) -> bool:
        return bool((hamming(self.phashes, np.uint64(phash)) <= self.image_bits).any())

    def _add_texts(self, path: Path) -> None:
        for text in _texts(path):
            if found := text_grams(text):
                self.grams |= found
                self.lengths.add(min(len(words(text)), NGRAM))

    def _add_images(self, folder: Path) -> set[int]:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder of held-out images")
        before, phashes, broken = len(self.sha256), set(), list[Path]()
        for path in folder.rglob("*"):
            if path.suffix.lower() in _PICTURES:
                data = path.read_bytes()
                self.sha256.add(hashlib.sha256(data).hexdigest()[:32])
                try:
                    phashes.add(look_at(ImageReference(str(path)), data).phash)
                except BadSample:
                    broken.append(path)
        if len(self.sha256) == before:
            raise ValueError(f"{folder} holds no picture ({', '.join(sorted(_PICTURES))})")
        if broken:
            logger.warning(
                "%s: held-out pictures that cannot be opened: %d, the first %s; they are known by their bytes alone, "
                "copies of another size or format are not seen",
                *(folder, len(broken), broken[0].name),
            )
        return phashes


def _texts(path: Path) -> Iterator[str]:
    if (path / INDEX_NAME).is_file():
        yield from (document.text for document in Corpus(path))
        return
    content = read_utf8(path)
    try:
        match path.suffix.lower():
            case ".txt":
                yield from content.splitlines()
            case ".jsonl":
                for line in content.split("\n"):  # splitlines() also breaks at U+2028 within a text
                    yield from _strings(parse_json(line) if line.strip() else None)
            case ".json":
                yield from _strings(parse_json(content))
            case _:
                raise ValueError("held-out texts are .txt, .json or .jsonl files, or folders of shards")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
