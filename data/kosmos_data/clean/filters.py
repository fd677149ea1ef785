"""What one document tells: its source, tags in its captions, its language, its pictures, and evaluation data in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kosmos.suggest import suggest

from .. import extras
from ..document import Document
from ..errors import BadSample
from ..web.draft import Picture, look_at
from ..web.filters import language, language_identifier
from ..web.held_out import HeldOutIndex
from ..web.page import ImageReference
from ..web.rules import TextRules
from .left_out import Verdict
from .options import CleanOptions

_TAG = re.compile(r"<[A-Z][A-Z_]*>")
_SOURCES = ("pile_set_name", "redpajama_set_name", "source", "dataset")


class Filters:
    """All filters that need nothing but the document.

    Args:
        options: what is left out.

    Raises:
        ModuleNotFoundError: a package of the extra ``web`` is missing.
        FileNotFoundError, ValueError: held-out data that cannot be read, or a language that py3langid does not know.
    """

    def __init__(self, options: CleanOptions) -> None:
        self.options = options
        self.left_out = {plain_name(name) for name in options.leave_out}
        self.held_out = HeldOutIndex(options.held_out)
        self.language = TextRules(language=options.language, language_confidence=options.language_confidence)
        with extras.hint():
            self.identifier = language_identifier()
        if options.language not in (known := {*self.identifier.nb_classes, "any"}):
            raise ValueError(f"no language {options.language!r}; {suggest(options.language, sorted(known))}")

    def run(self, document: Document) -> tuple[Verdict | None, list[Picture]]:
        """Why a document is dropped, or None and its pictures."""
        text = document.text
        source = source_of(document.meta, self.options.source_field)
        if source is not None and plain_name(source) in self.left_out:
            return Verdict("source", "source left out", source), []
        if self.options.person == "drop" and document.images and (tag := _TAG.search(text)):
            return Verdict("captions", "tag such as <PERSON>", tag.group()), []
        if self.is_foreign(text):
            return Verdict("language", "other language"), []
        try:
            pictures = [look_at(ImageReference(""), image.data) for image in document.images]
        except BadSample as error:
            return Verdict("images", error.reason, error.detail), []
        reason = self.held_out.found_in(text, pictures)
        return (Verdict("held out", reason) if reason else None), pictures

    def is_foreign(self, text: str) -> bool:
        """Whether a text is in another language than the one to keep; one of few words must surely be."""
        if self.options.language == "any" or not any(map(str.isalpha, text)):
            return False
        if len(text.split()) >= self.options.language_words:
            return language(text, self.language, self.identifier) is not None
        name, confidence = self.identifier.classify(text)
        return name != self.options.language and confidence >= self.options.language_confidence


def source_of(meta: Mapping[str, Any], name: str = "") -> str | None:
    """What a document's ``meta``, or a ``meta`` in it as the Pile has, names as its source; None if nothing.

    Args:
        meta: of the document.
        name: the field that names it; empty: the first of the usual ones.
    """
    inner = meta.get("meta")
    for place in (meta, inner if isinstance(inner, Mapping) else {}):
        for field in [name] if name else _SOURCES:
            if isinstance(value := place.get(field), str) and value:
                return value
    return None


def plain_name(source: str) -> str:
    """A source's name without case, spaces and punctuation: ``PubMed Central`` and ``pubmed_central`` are one."""
    return re.sub(r"[\W_]+", "", source.casefold())
