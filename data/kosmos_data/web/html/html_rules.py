"""Which parts of a page are not its text: the stated rules of extraction, and the limits on what is parsed at all.

No classifier: a rule looks at an element's tag, its role, the words of its class and id, and at how much of its text is
links. Each can be read here, and a page that loses something loses it for a reason that can be named.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from ... import errors
from ...errors import BadSample

MAX_BYTES = 5 << 20
"""Largest page that is parsed: Common Crawl's own limit since 2025."""

MAX_DEPTH = 512
"""Open elements at one time: browsers stop nesting at 512, and a parser's time grows with the square of the depth."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DROPPED = _words(
    "script style head template nav footer svg canvas iframe frameset noframes embed audio video map dialog menu "
    "button input select textarea datalist label legend meter progress output annotation annotation-xml rp area "
    "title link meta base source track param portal"
)
"""Elements whose content is never text of the page."""

BLOCKS = _words(
    "address article aside blockquote body caption center dd details dir div dl dt fieldset figcaption figure footer "
    "form h1 h2 h3 h4 h5 h6 header hgroup hr html legend li main ol optgroup option p pre search section summary table "
    "tbody td tfoot th thead tr ul xmp listing"
)
"""Elements before and behind which a paragraph ends."""

HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
PREFORMATTED = frozenset(("pre", "xmp", "listing", "plaintext"))
CONTENT = frozenset(("html", "body", "main", "article"))
"""Never removed for their names: ``<body class="nav-open has-sidebar">`` says nothing of its text."""

LINK_LISTS = frozenset(("div", "section", "ul", "ol", "dl", "p", "td", "center", "table", "blockquote"))
"""Removed when nearly all of their text is links."""

_ROLES = frozenset(
    ("navigation", "banner", "contentinfo", "search", "menu", "menubar", "toolbar", "dialog", "alertdialog", "tablist")
)
# The last word of a class or id says what a thing is: site-footer and main-nav are, footer-note and nav-open are not.
_BOILERPLATE = re.compile(
    r"(?:^|[\s_-])(?:nav(?:bar|igation|header|footer)?|(?:top|side|sub|bottom|main|foot|page|doc)-?nav|menubar|"
    r"breadcrumbs?|footer|masthead|pagination|pager|paginator|cookies?|gdpr|consent|"
    r"advert(?:s|isement|ising)?|ads|adsbygoogle|sponsored|newsletter|popup|modal|skip-?(?:link|to-?content|nav)s?|"
    r"editsection|sr-only|visually-?hidden|screen-reader-text|catlinks|jump-to-nav|printfooter|noprint)(?=\s|$)"
)
_SUSPECT = re.compile(
    r"(?:^|\s)contents(?=\s|$)|"
    r"(?:^|[\s_-])(?:side-?bar|menu|banner|header|toc|tableofcontents|related|recommend(?:ed|ations)|popular|trending|"
    r"shar(?:e|ing)|social|promo|tags?|categories|links|meta|byline|toolbar|search|login|sign-?up|subscribe|"
    r"seealso|siblings|prev-?next|outbrain|taboola|aside)(?=\s|$)"
)
_INVISIBLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
_PERMALINKS = frozenset(("¶", "#", "§", "🔗", "[#]"))

_LINKS_OF_A_LIST = 4
_LIST_SHARE = 0.8
_SUSPECT_SHARE = 1 / 3
_TEXT_OF_A_WRAPPER = 500


class Tally(NamedTuple):
    """What has been read so far, or, as a difference, what an element held.

    Args:
        text: characters.
        linked: characters in links.
        links: links.
        images: images.
        articles: ``<main>`` and ``<article>``.
        titles: ``<h1>``.
    """

    text: int
    linked: int
    links: int
    images: int
    articles: int
    titles: int


def is_left_out(tag: str, attributes: Mapping[str, str | None]) -> bool:
    """Whether an element goes with all that is in it, whatever that is: by tag, role or style."""
    if tag in DROPPED:
        return True
    if not attributes:
        return False
    return (
        "hidden" in attributes
        or attributes.get("role") in _ROLES
        or (tag == "dialog" and "open" not in attributes)
        or ("style" in attributes and _INVISIBLE.search(attributes["style"] or "") is not None)
    )


def is_local(attributes: Mapping[str, str | None]) -> bool:
    """A link within its page."""
    return (attributes.get("href") or "").startswith("#")


def is_permalink(text: str) -> bool:
    """The text of a heading's link to itself."""
    return text.strip() in _PERMALINKS


def suspicion(tag: str, attributes: Mapping[str, str | None], in_article: bool) -> str:
    """``boilerplate``, ``suspect`` or ``""``, by the words of class and id, or by the tags header and aside."""
    if tag in CONTENT:
        return ""
    if tag in ("header", "aside") and not in_article:
        return "boilerplate"
    names = f"{attributes.get('class') or ''} {attributes.get('id') or ''}".lower()
    if names != " " and _BOILERPLATE.search(names):
        return "boilerplate"
    if tag == "aside" or (names != " " and _SUSPECT.search(names)):
        return "suspect"
    return ""


def is_boilerplate(tag: str, suspected: str, held: Tally) -> bool:
    """The verdict on an element that has been read to its end, from what it held."""
    if suspected == "boilerplate":
        return held.articles == 0 and (tag != "header" or held.titles == 0)
    if suspected == "suspect":
        if held.articles or held.titles:
            return False
        return held.linked > _SUSPECT_SHARE * held.text or (held.text == 0 and held.links >= held.images)
    if tag == "form":  # some frameworks wrap the whole page in one
        return held.articles == 0 and held.text - held.linked < _TEXT_OF_A_WRAPPER
    return (
        tag in LINK_LISTS
        and held.links >= _LINKS_OF_A_LIST
        and held.linked > _LIST_SHARE * held.text
        and held.images == 0
    )


# Elements that a parser closes by itself, or that hold nothing, do not nest.
_OPENING = re.compile(
    r"<(/?)(?!(?:p|li|dd|dt|option|td|th|tr|tbody|thead|tfoot|colgroup|a|rp|rt|h[1-6]|area|base|br|col|embed|hr|img|input|"
    r"link|meta|param|source|track|wbr|nobr|html|head|body)[\s/>])([a-z][^\s/>]*)",
    re.IGNORECASE,
)


def check_depth(html: str) -> None:
    """Count open elements before anything is parsed.

    Raises:
        BadSample: more than :data:`MAX_DEPTH` at one place.
    """
    if html.count("<") <= MAX_DEPTH:
        return
    still_open: Counter[str] = Counter()
    depth = 0
    for closing, name in _OPENING.findall(html):
        if not closing:
            still_open[name] += 1
            depth += 1
            if depth > MAX_DEPTH:
                raise BadSample(errors.PAGE_TOO_DEEP, f"more than {MAX_DEPTH} open elements")
        elif still_open[name]:
            still_open[name] -= 1
            depth -= 1
