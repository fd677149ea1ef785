"""The filters of one page, in order: KOSMOS-1's (section 3.1 and appendix), with Gopher's and C4's for spam.

A filter is a small function that looks and says why not: of a page, of a paragraph, of a picture. :class:`Filters` runs
them in the order of their price, shortens the page, and writes every verdict into a ledger. What needs the whole corpus
(duplicates, boilerplate images, five images a document, half of the one-image documents) is in ``selection.py``.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Protocol

from .. import errors, extras
from ..errors import BadSample
from .draft import Draft, Picture, image_example, look_at, page_example
from .held_out import HeldOutIndex
from .ledger import IMAGES, PAGES, PARAGRAPHS, WITH_PAGE, Ledger
from .page import ImageReference
from .rules import HeldOut, ImageRules, TextRules

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

_LANGUAGE_CHARACTERS = 5000  # enough to tell; the identifier walks over every byte
_JUNK = re.compile(r"(?:https?://|www\.)\S+|\S+\.(?:com|net|org)\b\S*|[#@]\w\S*", re.IGNORECASE)


class ImageSource(Protocol):
    """Where the bytes of a page's images come from."""

    def get(self, url: str) -> bytes | None:
        """The bytes of the image at ``url``, or None if they are not there."""


class Filters:
    """All filters that need nothing but the page.

    Args:
        text, images, held_out: thresholds.
        source: where image bytes come from.

    Raises:
        ModuleNotFoundError: a package of the extra ``web`` is missing.
        FileNotFoundError, ValueError: held-out data that cannot be read.
    """

    def __init__(self, text: TextRules, images: ImageRules, held_out: HeldOut, source: ImageSource) -> None:
        with extras.hint():
            from .text_quality import Quality
        self.text, self.images, self.source = text, images, source
        self.missing: set[str] = set()  # addresses of images that the source does not have
        self.held_out = HeldOutIndex(held_out)
        self.quality = Quality(text)
        self.identifier = language_identifier()

    def run(self, draft: Draft, ledger: Ledger) -> bool:
        """Shorten a page by what its filters leave out; False when it is dropped. The ledger learns of everything."""
        ledger.enter(PARAGRAPHS, len(draft.paragraphs))
        ledger.enter(IMAGES, len(draft.images))
        steps: list[tuple[str, Callable[[], str | None]]] = [
            ("page", lambda: number_of_images(draft, self.images)),
            ("paragraphs", lambda: self._shorten(draft, ledger)),
            ("language", lambda: language(draft.text, self.text, self.identifier)),
            ("text", lambda: self.quality.page(draft.text)),
            ("images", lambda: self._look(draft, ledger)),
            ("held out", lambda: self.held_out.reason(draft)),
        ]
        for stage, step in steps:
            if (reason := step()) is not None:
                drop_page(draft, ledger, stage, reason)
                return False
        return True

    def _shorten(self, draft: Draft, ledger: Ledger) -> str | None:
        """Leave out paragraphs; a reason to drop the page when one of them condemns it."""
        kept: list[str | ImageReference | Picture] = []
        for node in draft.nodes:
            reason = paragraph(node, self.text) or self.quality.paragraph(node) if isinstance(node, str) else None
            if reason == "lorem ipsum":
                return reason
            if reason is None:
                kept.append(node)
            else:
                example = partial(page_example, draft.url, "", str(node))
                ledger.drop(PARAGRAPHS, "paragraphs", reason, f"{draft.url}\n{node}", example)
        draft.nodes = kept
        return None

    def _look(self, draft: Draft, ledger: Ledger) -> str | None:
        """Find and decode the page's images and leave out the bad ones; a reason when none is left."""
        kept: list[str | ImageReference | Picture] = []
        for node in draft.nodes:
            if not isinstance(node, ImageReference):
                kept.append(node)
                continue
            found, reason, detail = self._picture(node)
            if reason is None and found is not None:
                kept.append(found)
                continue
            example = partial(image_example, node.url, draft.url, found, detail)
            ledger.drop(IMAGES, "images", reason or errors.IMAGE_MISSING, f"{draft.url}\n{node.url}", example)
        draft.nodes = kept
        return None if draft.pictures else "no usable image"

    def _picture(self, reference: ImageReference) -> tuple[Picture | None, str | None, str]:
        data = self.source.get(reference.url)
        if data is None:
            self.missing.add(reference.url)
            return None, errors.IMAGE_MISSING, ""
        try:
            found = look_at(reference, data)
        except BadSample as error:
            return None, error.reason, error.detail
        return found, picture(found, self.images), ""


def number_of_images(draft: Draft, rules: ImageRules) -> str | None:
    """KOSMOS-1 drops pages without images; OBELICS drops galleries."""
    if not draft.images:
        return "no image"
    return "too many images" if len(draft.images) > rules.max_per_page else None


def language(text: str, rules: TextRules, identifier: LanguageIdentifier) -> str | None:
    """KOSMOS-1 keeps English; detected on the text, since what a page claims of itself is often wrong."""
    name, confidence = identifier.classify(text[:_LANGUAGE_CHARACTERS])
    return None if name == rules.language and confidence >= rules.language_confidence else "other language"


def paragraph(text: str, rules: TextRules) -> str | None:
    """KOSMOS-1 removes gibberish of emoji, hashtags and links."""
    return "links, hashtags or emoji" if junk_share(text) > rules.max_junk_share else None


def junk_share(text: str) -> float:
    """Share of the words of a text that are URLs, hashtags, mentions or emoji."""
    words = text.split()
    if not words:
        return 0.0
    return sum(bool(_JUNK.fullmatch(word)) or _is_symbols(word) for word in words) / len(words)


def picture(found: Picture, rules: ImageRules) -> str | None:
    """KOSMOS-1 drops images below 64 × 64 pixels or of one colour; DataComp those longer than 3 : 1."""
    if min(found.width, found.height) < rules.min_side:
        return "too small"
    if found.colour_range < rules.min_colour_range:
        return "one colour"
    return "too long and thin" if found.aspect_ratio > rules.max_aspect_ratio else None


def drop_page(draft: Draft, ledger: Ledger, stage: str, reason: str) -> None:
    """Count a page, and the images and paragraphs that it still had, as dropped."""
    ledger.drop(PAGES, stage, reason, draft.url, draft.example)
    ledger.drop_many(IMAGES, stage, WITH_PAGE, len(draft.images))
    ledger.drop_many(PARAGRAPHS, stage, WITH_PAGE, len(draft.paragraphs))


def _is_symbols(word: str) -> bool:
    """Emoji and other pictographs: nothing but symbols that are no mathematics, currency or keyboard character."""
    return all(unicodedata.category(letter) in ("So", "Sk", "Cn", "Cs", "Mn", "Cf") for letter in word)


@cache  # a second to load, and a process may run several tasks
def language_identifier() -> LanguageIdentifier:
    """py3langid's model, with probabilities; the extra ``web`` must be installed."""
    with extras.hint():
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
