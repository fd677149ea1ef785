"""Extraction: what is kept, in which order, with which image addresses; and WARC files in every state of repair."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from html import escape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("selectolax")

from kosmos_data.errors import NOT_HTML, PAGE_TOO_DEEP, PAGE_TOO_LARGE, PAGE_WITHOUT_TEXT, BadSample
from kosmos_data.web.html import html_rules
from kosmos_data.web.html.extract import extract
from kosmos_data.web.html.html_images import largest_first
from kosmos_data.web.page import ImageReference

URL = "https://example.org/a/page.html"
PROSE = "This is a sentence of the article that is long enough to be read as prose, with one and another clause. "
REASONS = {NOT_HTML, PAGE_TOO_LARGE, PAGE_TOO_DEEP, PAGE_WITHOUT_TEXT}


def nodes(html: str, text: str = "x") -> list[str]:
    """Paragraphs as they are, images as ``<url>``; a first paragraph ``x`` makes any page one with text."""
    page = extract(f"<p>{text}</p>{html}".encode(), URL)
    shown = [
        node if isinstance(node, str) else f"<{node.url.removeprefix('https://example.org/')}>" for node in page.nodes
    ]
    assert shown[0] == text
    return shown[1:]


# --- text


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("<p>one<p>two", ["one", "two"]),
        ("<div>one<div>two</div>three</div>", ["one", "two", "three"]),
        ("<p>a <b>bold</b><i>italic</i> word</p>", ["a bolditalic word"]),
        ("<p>  a\n\t lot&nbsp;of   space </p>", ["a lot of space"]),
        ("<p>line<br>break</p>", ["line\nbreak"]),
        ("<p>one<br> <br>two", ["one", "two"]),
        ("<pre>\ndef f():\n    return 1\n\n# end  \n</pre>after", ["def f():\n    return 1\n\n# end", "after"]),
        ("<pre><div>a</div><div>  b</div></pre>", ["a\n  b"]),
        ("<pre><code><span>if</span> x:\n\ty</code></pre>", ["if x:\n\ty"]),
        ("<ul><li>one<li>two<ul><li>three</ul></ul>", ["one", "two", "three"]),
        ("<dl><dt>term<dd>meaning</dl>", ["term", "meaning"]),
        ("<h2>Title<a href='#t'>¶</a></h2>", ["Title"]),
        ("soft\u00adhy\u200bphen", ["softhyphen"]),
        ("&lt;tag&gt; &amp; &eacute;&#x2014;&#0;", ["<tag> & é—\ufffd"]),
        ("<p>a<script>var b</script><style>c</style><template>d</template><!-- e -->f", ["af"]),
        ("<p hidden>a</p><p style='Display : NONE'>b</p><p style='visibility:hidden'>c</p>d", ["d"]),
        ("<p>a<span aria-hidden=true>icon</span> b", ["a b"]),
        ("<svg><title>t</title><text>u</text></svg><math><mi>x</mi><annotation>y</annotation></math>", ["x"]),
        ("<button>buy</button><select><option>1</select><textarea>z</textarea><input value=v><label>w</label>", []),
        ("<noscript><p>without scripts</noscript>", ["without scripts"]),
        ("<iframe>a</iframe><noframes>b</noframes><object>fallback</object>", ["fallback"]),
        ("<details><summary>more</summary>hidden until opened</details>", ["more", "hidden until opened"]),
    ],
)
def test_text(html: str, expected: list[str]) -> None:
    assert nodes(html) == expected


LINKS = "<ul>" + "".join(f"<li><a href=/{n}>entry {n}</a>" for n in range(5)) + "</ul>"


@pytest.mark.parametrize(
    ("html", "kept"),
    [
        (f"<nav>{PROSE}</nav>", False),
        (f"<footer>{PROSE}</footer>", False),
        (f"<aside>{PROSE}</aside>", False),
        (f"<article>x<aside>{PROSE}</aside></article>", True),  # a note in an article, not a column beside it
        (f"<header>{PROSE}</header>", False),
        (f"<header><h1>T</h1>{PROSE}</header>", True),
        (f"<article><header>{PROSE}</header></article>", True),
        (f"<div role=navigation>{PROSE}</div>", False),
        (f"<div class='site-footer wide'>{PROSE}</div>", False),
        (f"<div class='footer-note'>{PROSE}</div>", True),
        (f"<div id=cookie-consent>{PROSE}</div>", False),
        (f"<div class='main-nav'><article>{PROSE}</article></div>", True),
        (f"<div class=sidebar>{PROSE}</div>", True),  # a box of the text
        (f"<div class=sidebar>{PROSE}{'<a href=/>entry</a> ' * 20}</div>", False),
        (f"<div class=sidebar><h1>T</h1>{PROSE}{'<a href=/>entry</a> ' * 20}</div>", True),
        (f"<div class=share><a href=/>{PROSE}</a></div>", False),
        (f"<p><a href=/>{PROSE}</a></p>", True),  # one link is not a list of links
        (f"<form>{PROSE}</form>", False),
        (f"<form>{PROSE * 9}</form>", True),  # wraps the page
        (f"<blockquote>{PROSE}</blockquote>", True),
    ],
)
def test_boilerplate(html: str, kept: bool) -> None:
    assert any(PROSE.strip() in node for node in nodes(html)) == kept


def test_lists_of_links_are_left_out_and_texts_with_links_are_not() -> None:
    assert nodes(LINKS) == []
    assert nodes(f"<div>{LINKS}<p>{PROSE}</p></div>") == [PROSE.strip()]
    linked = "<p>" + "".join(f"see <a href=/{n}>{n}</a>, which says something; " for n in range(9))
    assert len(nodes(linked)) == 1
    gallery = "<ul>" + "".join(f"<li><a href=/{n}><img src=/{n}.png>picture {n}</a>" for n in range(5)) + "</ul>"
    assert nodes(gallery)[:2] == ["<0.png>", "picture 0"]


def test_with_one_main_only_that_is_read() -> None:
    assert nodes(f"<div>{PROSE}</div>", text="x") == [PROSE.strip()]
    page = extract(f"<div>{PROSE}</div><main><p>article</p></main>".encode(), URL)
    assert page.nodes == ["article"]
    page = extract(f"<div>{PROSE}</div><main><nav>empty</nav></main>".encode(), URL)
    assert page.nodes == [PROSE.strip()]  # a <main> that a script would fill says nothing


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("<tr><th>a<th>b<tr><td>1<td>2", []),
        ("<tr><td><img src=n.png><th>Note<tr><td><p>Text", ["<a/n.png>", "Note", "Text"]),
        ("<tr><td>left<td>right", ["left", "right"]),
        ("<tr><td>nav<td><h2>Title</h2>text<tr><td>a<td>b", ["nav", "Title", "text", "a", "b"]),
        ("<tr><td>a<td><table><tr><td>inner</table><tr><td>b<td>c", ["a", "inner", "b", "c"]),
        ("<tr><th>pic<th>name<tr><td><img src=1.png>caption<td>x<tr><td>3<td>4", ["<a/1.png>", "caption"]),
        ("role=presentation><tr><td>a<td>b<tr><td>c<td>d", ["a", "b", "c", "d"]),
    ],
)
def test_tables_of_data_are_left_out(table: str, expected: list[str]) -> None:
    html = f"<table {table}</table>" if table.startswith("role") else f"<table>{table}</table>"
    assert nodes(html) == expected


# --- images


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("<img src=b.png>", ["<a/b.png>"]),
        ("<img src='//cdn.example.org/c d.png#f'>", ["<https://cdn.example.org/c%20d.png>"]),
        ("<img src=s.png srcset='a.png 320w, b.png 1024w, c.png 640w'>", ["<a/b.png>"]),
        ("<img src=s.png srcset='a.png, b.png 2x'>", ["<a/b.png>"]),
        ("<img src=p.gif data-src=real.png>", ["<a/real.png>"]),
        ("<img src=p.gif data-original=real.png>", ["<a/real.png>"]),
        ("<img src=p.gif srcset='p.gif 1w' data-srcset='r1.png 100w, r2.png 200w'>", ["<a/r2.png>"]),
        ("<img src='data:image/gif;base64,R0lGOD' data-lazy-src=real.png>", ["<a/real.png>"]),
        ("<img src='data:image/gif;base64,R0lGOD'>", []),
        ("<img src={{placeholder}} alt=x>", []),
        ("<img alt='no address'>", []),
        ("<img src='http://[broken/'><img src=ftp://x/y><img src=javascript:1>", []),
        ("<img src=t.gif width=1 height=1><img src=u.gif height=0><img src=v.gif style='width:1px;height:1px'>", []),
        ("<img src=wide.png width='100%'>", ["<a/wide.png>"]),
        (
            "<picture><source type=image/avif srcset=x.avif><source srcset='s.webp 400w, l.webp 800w' type=image/webp>"
            "<img src=f.jpg></picture>",
            ["<a/l.webp>"],
        ),
        (
            "<picture><source type=image/avif srcset=x.avif><img src=f.jpg></picture><img src=g.jpg>",
            ["<a/f.jpg>", "<a/g.jpg>"],
        ),
        ("<img data-src=l.png src=p.gif><noscript><img src=l.png></noscript>", ["<a/l.png>"]),
        ("<img src=p.gif><noscript><img src=real.png></noscript>", ["<a/real.png>"]),
        ("<noscript><img src=1.png></noscript><noscript><img src=2.png></noscript>", ["<a/1.png>", "<a/2.png>"]),
        ("<img src=1.png>text<noscript><img src=2.png></noscript>", ["<a/1.png>", "text", "<a/2.png>"]),
        ("before <img src=i.png> after", ["before", "<a/i.png>", "after"]),
        ("<a href=/x><img src=1.png></a><a aria-hidden=true><img src=2.png>no</a>", ["<a/1.png>", "<a/2.png>"]),
        ("<figure><figcaption>cap</figcaption><img src=1.png></figure>next", ["<a/1.png>", "cap", "next"]),
        ("<figure><img src=1.png><figcaption>cap</figcaption></figure>", ["<a/1.png>", "cap"]),
        (
            "<figure>intro<figcaption>cap</figcaption><img src=1.png><img src=2.png></figure>",
            ["intro", "<a/1.png>", "<a/2.png>", "cap"],
        ),
        ("<nav><img src=logo.png></nav><img src=1.png>", ["<a/1.png>"]),
        ("<img src=1.png><img src=1.png>", ["<a/1.png>"]),
        ("<amp-img src=1.png><noscript><img src=1.png></noscript></amp-img>", ["<a/1.png>"]),
    ],
)
def test_images(html: str, expected: list[str]) -> None:
    assert nodes(html) == expected


def test_what_an_image_declares() -> None:
    page = extract(b"<p>x<img src=i.png alt=' a\n cat ' width=640 height=480px><img src=j.png style='width: 9px'>", URL)
    first, second = page.nodes[1:]
    assert first == ImageReference("https://example.org/a/i.png", "a cat", 640, 480)
    assert (second.width, second.height) == (9, None)  # type: ignore[union-attr]


def test_the_base_element_and_the_claims_of_the_page() -> None:
    html = b"<html lang=en-GB><title>\n A  title </title><base href=/static/><p>x<img src=i.png>"
    page = extract(html, URL)
    assert page.nodes[1].url == "https://example.org/static/i.png"  # type: ignore[union-attr]
    assert (page.title, page.language, page.url) == ("A title", "en-GB", URL)
    assert extract(b"<base href='http://[bad'><p>x<img src=i.png>", URL).nodes[1].url.endswith("/a/i.png")  # type: ignore[union-attr]


@given(st.lists(st.tuples(st.integers(1, 9999), st.booleans()), min_size=1, max_size=9))
def test_srcset_names_the_widest_first(sizes: list[tuple[int, bool]]) -> None:
    srcset = ",".join(f"{' ' * wide}u{n},w_{width}/x.png {width}w{' ' * wide}" for n, (width, wide) in enumerate(sizes))
    widths = [width for width, _ in sizes]
    found = [int(url.split(",w_")[1].split("/")[0]) for url in largest_first([srcset])]
    assert found == sorted(widths, reverse=True)


# --- order, by construction


@st.composite
def pages(draw: st.DrawFn) -> tuple[str, list[str]]:
    """HTML of nested blocks, and the nodes in the order in which they were written."""
    expected: list[str] = []

    def block(depth: int) -> str:
        parts = []
        for _ in range(draw(st.integers(1, 4))):
            kind = draw(st.sampled_from(("text", "image", "lazy", "block" if depth < 5 else "text")))
            number = len(expected)
            if kind == "text":
                words = f"words {number} & <so> on" if draw(st.booleans()) else f"words\n {number} é"
                expected.append(" ".join(words.split()))
                inner = escape(words)
                parts.append(
                    draw(st.sampled_from(("<p>{}</p>", "<h3>{}</h3>", "<div><span>{}</span></div>"))).format(inner)
                )
            elif kind == "image":
                expected.append(f"<{number}.png>")
                parts.append(f"<img src='/{number}.png' alt='x'>")
            elif kind == "lazy":
                expected.append(f"<{number}.png>")
                parts.append(f"<picture><source srcset='/s.png 1w,/{number}.png 9w'><img src=/p.gif></picture>")
            else:
                tag = draw(st.sampled_from(("div", "section", "article", "ul", "blockquote", "figure", "center")))
                wrapped = block(depth + 1)
                parts.append(f"<{tag} class=content>{f'<li>{wrapped}</li>' if tag == 'ul' else wrapped}</{tag}>")
        return draw(st.sampled_from(("", " ", "\n"))).join(parts)

    return block(0), expected


@given(pages())
@settings(max_examples=150, deadline=None)
def test_nodes_come_in_the_order_in_which_they_were_written(page: tuple[str, list[str]]) -> None:
    html, expected = page
    assert nodes(html) == expected


# --- encodings


@pytest.mark.parametrize(
    ("html", "declared"),
    [
        ("<p>naïve café".encode(), None),
        ("<p>naïve café".encode("cp1252"), None),
        ("<p>naïve café".encode("cp1252"), "ISO-8859-1"),
        ("<meta charset=windows-1252><p>naïve café".encode("cp1252"), None),
        ("<meta charset=windows-1252><p>naïve café".encode(), "utf-8"),  # the header goes first
        ("\ufeff<p>naïve café".encode("utf-16-le"), None),
        ("\ufeff<meta charset=latin1><p>naïve café".encode(), "latin1"),  # the byte order mark before both
        (
            "<meta http-equiv=Content-Type content='text/html; charset=macintosh'><p>naïve café".encode("mac-roman"),
            None,
        ),
        ("<meta charset=utf-16><p>naïve café".encode(), None),  # it could be read, so it is not
        *[("<p>naïve café".encode(), name) for name in ("hex", "idna", "undefined", "unicode_escape", "no\udc80", "é")],
        *[(f"<meta charset={name}><p>naïve café".encode(), None) for name in ("base64", "rot13", "utf-7", "x" * 999)],
    ],
)
def test_encodings(html: bytes, declared: str | None) -> None:
    assert extract(html, URL, declared).nodes == ["naïve café"]


# --- pages that are none


@pytest.mark.parametrize(
    ("html", "reason"),
    [
        (b"", NOT_HTML),
        (b"just text", NOT_HTML),
        (b'{"json": [1, 2]}', NOT_HTML),
        (b"%PDF-1.4\n" + bytes(range(256)) * 20 + b"<p>", NOT_HTML),
        (b"\x89PNG\r\n\x1a\n" + bytes(500) + b"<a>", NOT_HTML),
        (b"<html><body></body></html>", PAGE_WITHOUT_TEXT),
        (b"<img src=a.png>", PAGE_WITHOUT_TEXT),
        (b"<script>all is script</script>", PAGE_WITHOUT_TEXT),
        (b"<p>" + b"x" * html_rules.MAX_BYTES, PAGE_TOO_LARGE),
        (b"<div>" * 100_000, PAGE_TOO_DEEP),  # 70 s in the parser
        (b"<ul><li>" * 30_000 + b"x", PAGE_TOO_DEEP),  # 10 s in the parser
        (b"<a><b>" * 50_000 + b"x", PAGE_TOO_DEEP),
        (b"<div></b><i>" * 20_000, PAGE_TOO_DEEP),  # ends that end nothing do not count
        (b"<DIV/>" * 20_000, PAGE_TOO_DEEP),
    ],
)
def test_pages_that_are_left_out(html: bytes, reason: str) -> None:
    start = time.process_time()
    with pytest.raises(BadSample) as caught:
        extract(html, URL)
    assert caught.value.reason == reason
    assert time.process_time() - start < 2


def test_many_unclosed_paragraphs_are_no_depth() -> None:
    html = b"<ul>" + b"<li>one <p>two <br> <img src=x.png> <a name=y>" * 2000
    assert len(extract(html, URL).nodes) > 2000


def test_hostile_lengths_take_no_time() -> None:
    start = time.process_time()
    for attack in (
        f"<img srcset='{'a' * 200_000}'>",
        f"<img srcset='{'( ' * 100_000}'>",
        f"<img srcset='{', ' * 100_000}'>",
        f"<img srcset='{'u 1w,' * 50_000}'>",
        f"<div class='{'nav-' * 50_000}'>y</div>",
        f"<div style='{'display : ' * 30_000}'>y</div>",
        f"<img width='{'9' * 100_000}' src=a.png>",
        f"<img style='{'width:' * 50_000}' src=a.png>",
        f"<base href='{'a/../' * 50_000}'>",
        "<p>" + "\u00ad" * 300_000,
        "<br>" * 100_000,
        "<pre>" + "\n" * 300_000 + "</pre>",
        "<table><tr><td>x" * 400,
        "&amp" * 100_000,
        "<figure><figcaption>c</figcaption><img src=a.png>" * 400,
    ):
        nodes(attack)
    assert time.process_time() - start < 5


SAMPLE = f"""<!DOCTYPE html><html lang=en><head><meta charset=utf-8><title>Title</title><base href="/b/"></head>
<body class=page><nav><a href=/>Home</a></nav><header><h1>Title</h1></header><main><article><p>{PROSE}
<img src="1.png" srcset="1.png 1x, 2.png 2x"><figure><img data-src=3.png src="data:,">
<noscript><img src=3.png></noscript><figcaption>Caption &amp; more</figcaption></figure>
<table><tr><th>a<th>b<tr><td>1<td><img src=4.png></table><pre>code
  more</pre><ul><li><a href=1>1</a><li><a href=2>2</a></ul><p hidden>no</p><p style="display:none">no</p></article>
</main><footer>&copy; nobody</footer></body></html>""".encode()


def test_a_thousand_mutated_pages(mutate: Callable[[bytes, random.Random], bytes]) -> None:
    rng = random.Random(4)
    found: Counter[str] = Counter()
    slowest = 0.0
    for number in range(1000):
        html = mutate(SAMPLE if number % 2 else SAMPLE.decode().encode("utf-16"), rng)
        start = time.process_time()
        try:
            page = extract(html, URL, rng.choice((None, "utf-8", "latin1", "hex", "utf-16")))
        except BadSample as error:
            found[error.reason] += 1
        else:
            found["good"] += 1
            assert all(node and "\0" not in node for node in page.nodes if isinstance(node, str))
            assert all(
                node.url.startswith(("http://", "https://")) for node in page.nodes if isinstance(node, ImageReference)
            )
            "".join(node for node in page.nodes if isinstance(node, str)).encode()
        slowest = max(slowest, time.process_time() - start)
    assert found.total() == 1000
    assert set(found) <= REASONS | {"good"}
    assert found["good"] > 300
    assert found[PAGE_TOO_DEEP] > 20
    assert slowest < 1


def test_every_label_of_the_standard_is_read() -> None:
    """All 228 labels, in the header and in the page; each codec is one of Python's that reads text."""
    from kosmos_data.web.html.encoding_labels import CODECS

    assert len(CODECS) == 228
    for label, codec in CODECS.items():
        if codec == "replacement" or codec.startswith("utf-16"):
            continue
        page = f"<meta charset={label.upper()}><p>a b c</p>".encode("ascii")
        assert extract(page, URL, None).nodes == extract(page, URL, label).nodes == ["a b c"]


@pytest.mark.parametrize(
    ("label", "codec", "text"),
    [
        ("windows-949", "cp949", "한국어 뷁"),
        ("x-gbk", "gb18030", "中文 €"),
        ("iso-8859-8-i", "iso8859-8", "שלום"),
        ("ks_c_5601-1987", "cp949", "한국"),
        ("x-sjis", "cp932", "日本①"),
        ("dos-874", "cp874", "ไทย"),
        ("x-mac-ukrainian", "mac-cyrillic", "Привіт"),
        ("logical", "iso8859-8", "שלום"),
    ],
)
def test_labels_that_only_the_standard_has(label: str, codec: str, text: str) -> None:
    assert extract(f"<p>{text}</p>".encode(codec), URL, label).nodes == [text]
    assert extract(f"<meta charset='{label}'><p>{text}</p>".encode(codec), URL, None).nodes == [text]
