"""HTML to text and images in reading order: a walk over the parsed page that keeps what a reader would read.

KOSMOS-1 (section 3.1) takes "text and images from the HTML of each selected web page" and says no more; its tools were
not released. The walk follows OBELICS (arXiv 2306.16527, appendix A.1): the DOM in document order, boilerplate removed
by rules (``html_rules.py``), then a list of paragraphs and images. Where it goes beyond extractors of text: it keeps
images where they stand, with their real address (``html_images.py``) and their caption behind them.

- Navigation, footers, asides, forms, scripts and hidden elements are left out, by tag, role, style, class and id, and
  blocks that are links for the most part. With one ``<main>`` in the page only that is read.
- Tables of data are left out; tables that only arrange the page are read. Cells with an image stay in either.
- The walk keeps its own stack: no page can exhaust Python's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .. import errors
from ..errors import BadSample
from . import html_rules as rules
from . import missing
from .encoding import decode
from .html_images import absolute, reference
from .page import ImageReference, Page

if TYPE_CHECKING:
    from selectolax.lexbor import LexborHTMLParser, LexborNode

Attributes = Mapping[str, str | None]

_LINE = "\0"  # a line break, which no parsed text can contain
_UNSEEN = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))
_BLANK = re.compile(r"\n\s*\n\s*\n+")
_NO_ATTRIBUTES: Attributes = {}


def extract(html: bytes, url: str, encoding: str | None = None) -> Page:
    """The text and images of a page, in reading order.

    Args:
        html: body of the response.
        url: address of the page, which relative addresses are relative to.
        encoding: charset that the HTTP header declares, if any.

    Raises:
        BadSample: not HTML, larger than ``html_rules.MAX_BYTES``, nested deeper than ``html_rules.MAX_DEPTH``, or
            without text. Nothing else, whatever the bytes are.
        ModuleNotFoundError: the extra ``web`` is not installed.
    """
    with missing.hint():
        from selectolax.lexbor import LexborHTMLParser
    if len(html) > rules.MAX_BYTES:
        raise BadSample(errors.PAGE_TOO_LARGE, f"{len(html)} bytes, the limit is {rules.MAX_BYTES}")
    text = decode(html, encoding)
    rules.check_depth(text)
    tree = LexborHTMLParser(text)
    base = _base(tree, url)
    mains = tree.css("main, [role=main]")
    nodes = _walk(mains[0], base) if len(mains) == 1 else []
    if not any(isinstance(node, str) for node in nodes) and tree.root is not None:
        nodes = _walk(tree.root, base)
    if not any(isinstance(node, str) for node in nodes):
        raise BadSample(errors.PAGE_WITHOUT_TEXT, url)
    title = tree.css_first("title")
    language = _language(tree)
    return Page(url, " ".join(title.text().split()) if title is not None else "", language, nodes)


def _base(tree: LexborHTMLParser, url: str) -> str:
    element = tree.css_first("base[href]")
    href = element.attributes.get("href") if element is not None else None
    return (absolute(href, url) if href else None) or url


def _language(tree: LexborHTMLParser) -> str:
    attributes = tree.root.attributes if tree.root is not None else _NO_ATTRIBUTES
    return (attributes.get("lang") or attributes.get("xml:lang") or "").strip()[:35]


def _walk(root: LexborNode, base: str) -> list[str | ImageReference]:
    """Depth first, in document order, with an explicit stack; an :class:`_Open` on it closes its element."""
    reader = _Reader(base)
    stack: list[LexborNode | _Open] = [root]
    while stack:
        item = stack.pop()
        if isinstance(item, _Open):
            reader.leave(item)
            continue
        tag = item.tag or ""
        if tag == "-text":
            reader.text(item.text_content or "")
            continue
        attributes = item.attributes
        if rules.is_left_out(tag, attributes) and item is not root:
            continue
        if tag in ("img", "amp-img", "br", "hr"):
            reader.void(tag, attributes)
            if tag != "amp-img":
                continue
        if tag == "a" and rules.is_local(attributes) and rules.is_permalink(item.text()):
            continue
        if (opened := reader.enter(tag, attributes, item)) is not None:
            stack.append(opened)
        children = list(item.iter(include_text=True))
        children.reverse()
        stack.extend(children)
    reader.flush()
    return reader.nodes


@dataclass(slots=True)
class _Open:
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


class _Reader:
    """What has been read so far; elements are entered and left in document order."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.nodes: list[str | ImageReference] = []
        self.buffer: list[str] = []  # the open paragraph
        self.sources: list[Attributes] = []  # of the open <picture>
        self.figures: list[_Open] = []
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

    def enter(self, tag: str, attributes: Attributes, node: LexborNode) -> _Open | None:
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
        opened = _Open(tag, len(self.nodes), self.tally(), suspected, muted)
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

    def leave(self, opened: _Open) -> None:
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

    def _forget(self, opened: _Open) -> rules.Tally:
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

    def _order_captions(self, figure: _Open) -> None:
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

    def _leave_table(self, opened: _Open, held: rules.Tally) -> None:
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


_COUNTED = frozenset(("a", "picture", "noscript", *rules.PREFORMATTED))
_NAMED = frozenset(("header", "aside"))
