"""What has been read of a page so far: paragraphs and images, taken back where an element turns out to be no text.

``extract.py`` walks over the page and calls :class:`Reader` at the start and at the end of every element; the rules of
what is kept are in ``html_rules.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..page import ImageReference
from . import html_rules as rules
from .html_images import Attributes, reference

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

_LINE = "\0"  # a line break, which no parsed text can contain
_UNSEEN = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))
# Elements that break no line and must still be known when they end, and those whose tag alone may be boilerplate.
_COUNTED = frozenset(("a", "picture", "noscript", *rules.PREFORMATTED))
_NAMED = frozenset(("header", "aside"))


@dataclass(slots=True)
class OpenElement:
    """An element whose end is still to come.

    Args:
        tag: its tag.
        start: number of nodes before it.
        before: tally before it.
        suspected: what its name says, see :func:`html_rules.suspicion`.
        muted: its text is left out, its images are not.
        captions: of a figure: where its captions lie.
        table: of a table: what is known of it so far.
    """

    tag: str
    start: int
    before: rules.Tally
    suspected: str = ""
    muted: bool = False
    captions: list[tuple[int, int]] = field(default_factory=list)
    table: _Table | None = None


@dataclass(slots=True)
class _Table:
    """``kept``: node ranges of cells with images; ``rows``: rows with text in two or more cells."""

    arranges: bool
    kept: list[tuple[int, int]] = field(default_factory=list)
    rows: int = 0
    cells: int = 0

    @property
    def holds_data(self) -> bool:
        return not self.arranges and self.rows >= 2


class Reader:
    """What has been read so far; elements are entered and left in document order."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.nodes: list[str | ImageReference] = []
        self.buffer: list[str] = []  # the open paragraph
        self.sources: list[Attributes] = []  # of the open <picture>
        self.figures: list[OpenElement] = []
        self.tables: list[_Table] = []
        self.links = self.linked = self.characters = self.images = self.articles = self.titles = 0
        self.in_link = self.in_pre = self.in_article = self.in_noscript = self.muted = 0
        self.replaceable = -1  # the image that a <noscript> right behind it stands for

    def tally(self) -> rules.Tally:
        return rules.Tally(self.characters, self.linked, self.links, self.images, self.articles, self.titles)

    def text(self, text: str) -> None:
        if self.muted or not text:
            return
        self.buffer.append(text)
        if length := len(text.strip()):
            self.characters += length
            self.linked += length if self.in_link else 0
            self.replaceable = -1

    def void(self, tag: str, attributes: Attributes) -> None:
        if tag == "br":
            self.buffer.append("\n" if self.in_pre else _LINE)
        elif tag == "hr":
            self.flush()
        elif (image := reference(attributes, self.sources, self.base)) is not None:
            self.image(image)

    def image(self, image: ImageReference) -> None:
        self.flush()
        if self.in_noscript and self.replaceable >= 0:
            self.nodes[self.replaceable] = image
            self.replaceable = -1
        elif not (self.nodes and isinstance(last := self.nodes[-1], ImageReference) and last.url == image.url):
            self.nodes.append(image)
            self.images += 1
            self.replaceable = -1 if self.in_noscript else len(self.nodes) - 1

    def flush(self) -> None:
        """End the open paragraph."""
        if not self.buffer:
            return
        text = "".join(self.buffer).translate(_UNSEEN)
        self.buffer.clear()
        if self.in_pre:
            lines = [line.rstrip() for line in text.split("\n")]
            if text := "\n".join(lines).strip("\n"):
                self.nodes.append(text)
            return
        paragraph: list[str] = []
        for line in [" ".join(line.split()) for line in text.split(_LINE)] + [""]:  # an empty line ends a paragraph
            if line:
                paragraph.append(line)
            elif paragraph:
                self.nodes.append("\n".join(paragraph))
                paragraph = []

    def enter(self, tag: str, attributes: Attributes, node: LexborNode) -> OpenElement | None:
        """Begin an element; None if nothing is to be done at its end."""
        if tag == "a" and not attributes.get("href"):
            tag = "span"  # an anchor, not a link
        muted = attributes.get("aria-hidden") == "true"
        suspected = rules.suspicion(tag, attributes, self.in_article > 0) if attributes or tag in _NAMED else ""
        block = tag in rules.BLOCKS or bool(suspected)
        if not (block or muted or tag in _COUNTED):
            return None
        if block:
            self._break()
        opened = OpenElement(tag, len(self.nodes), self.tally(), suspected, muted)
        self.muted += muted
        self._count(tag, 1)
        if tag == "picture":
            self.sources = [child.attributes for child in node.iter() if child.tag == "source"]
        elif tag == "figure":
            self.figures.append(opened)
        elif tag == "table":
            for table in self.tables[-1:]:
                table.arranges = True
            opened.table = _Table(attributes.get("role") in ("presentation", "none"))
            self.tables.append(opened.table)
        elif tag == "tr" and self.tables:
            self.tables[-1].cells = 0
        elif tag in rules.HEADINGS and self.tables:
            self.tables[-1].arranges = True
        return opened

    def leave(self, opened: OpenElement) -> None:
        """End an element, and take back what it held if that was no text of the page."""
        tag = opened.tag
        if tag in rules.BLOCKS or opened.suspected:
            self._break(closing=tag in rules.PREFORMATTED)
        self._count(tag, -1)
        self.muted -= opened.muted
        held = rules.Tally(*(now - then for now, then in zip(self.tally(), opened.before, strict=True)))
        if rules.is_boilerplate(tag, opened.suspected, held):
            held = self._forget(opened)
        if tag == "picture":
            self.sources = []
        elif tag == "figure":
            self.figures.pop()
            self._order_captions(opened)
        elif tag == "figcaption" and self.figures:
            self.figures[-1].captions.append((opened.start, len(self.nodes)))
        elif tag in ("td", "th", "tr", "table"):
            self._leave_table(opened, held)

    def _forget(self, opened: OpenElement) -> rules.Tally:
        """Take back an element; its text no longer counts for those around it."""
        del self.nodes[opened.start :]
        self.characters, self.linked, self.links, self.images, self.articles, self.titles = opened.before
        self.replaceable = -1
        return rules.Tally(0, 0, 0, 0, 0, 0)

    def _count(self, tag: str, step: int) -> None:
        """Where we are; called with 1 at an element's start and -1 at its end."""
        if tag == "a":
            self.in_link += step
            self.links += step > 0
        elif tag in rules.PREFORMATTED:
            self.in_pre += step
        elif tag in ("main", "article"):
            self.in_article += step
            self.articles += step > 0
        elif tag == "noscript":
            self.in_noscript += step
        elif tag == "h1":
            self.titles += step > 0

    def _break(self, closing: bool = False) -> None:
        """The edge of a block: a new paragraph, but within preformatted text only a new line."""
        if not self.in_pre or closing:
            self.flush()
        elif self.buffer and not self.buffer[-1].endswith("\n"):
            self.buffer.append("\n")

    def _order_captions(self, figure: OpenElement) -> None:
        """Put the captions of a figure behind its last image, wherever they stood."""
        inside = self.nodes[figure.start :]
        captions = [(start - figure.start, end - figure.start) for start, end in figure.captions]
        first = next((at for at, node in enumerate(inside) if isinstance(node, ImageReference)), -1)
        if not captions or first < captions[0][0]:
            return
        text = [node for start, end in captions for node in inside[start:end]]
        rest = [node for at, node in enumerate(inside) if not any(start <= at < end for start, end in captions)]
        self.nodes[figure.start :] = rest + text
        self.replaceable = -1

    def _leave_table(self, opened: OpenElement, held: rules.Tally) -> None:
        if opened.table is None:
            if not self.tables:
                return
            table = self.tables[-1]
            if opened.tag == "tr":
                table.rows += table.cells >= 2
            else:
                table.cells += held.text > 0
                if held.images:
                    table.kept.append((opened.start, len(self.nodes)))
            return
        table = self.tables.pop()
        if table.holds_data:
            kept = [node for start, end in table.kept for node in self.nodes[start:end]]
            self.nodes[opened.start :] = kept
            self.replaceable = -1
