"""HTML to text and images in reading order: a walk over the parsed page that keeps what a reader would read.

KOSMOS-1 (section 3.1) takes "text and images from the HTML of each selected web page" and says no more; its tools were
not released. The walk follows OBELICS (arXiv 2306.16527, appendix A.1): the DOM in document order, boilerplate removed
by rules (``html_rules.py``), then a list of paragraphs and images (``html_reader.py``). Where it goes beyond extractors
of text: it keeps images where they stand, with their real address (``html_images.py``) and their caption behind them.

- Navigation, footers, asides, forms, scripts and hidden elements are left out, by tag, role, style, class and id, and
  blocks that are links for the most part. With one ``<main>`` in the page only that is read.
- Tables of data are left out; tables that only arrange the page are read. Cells with an image stay in either.
- The walk keeps its own stack: no page can exhaust Python's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ... import errors, extras
from ...errors import BadSample
from ..page import ImageReference, Page
from . import html_rules as rules
from .encoding import decode
from .html_images import Attributes, absolute
from .html_reader import OpenElement, Reader

if TYPE_CHECKING:
    from selectolax.lexbor import LexborHTMLParser, LexborNode

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
    with extras.hint():
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
    """Depth first, in document order, with an explicit stack; an :class:`OpenElement` on it closes its element."""
    reader = Reader(base)
    stack: list[LexborNode | OpenElement] = [root]
    while stack:
        item = stack.pop()
        if isinstance(item, OpenElement):
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
