"""Extraction: what is kept, in which order, with which image addresses; and WARC files in every state of repair."""

from __future__ import annotations

import gzip
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from html import escape
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("selectolax")

from kosmos_data.errors import NOT_HTML, PAGE_TOO_DEEP, PAGE_TOO_LARGE, PAGE_WITHOUT_TEXT, BadSample
from kosmos_data.web import html_rules, warc
from kosmos_data.web.html import extract
from kosmos_data.web.html_images import largest_first
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


def mutate(html: bytes, rng: random.Random) -> bytes:
    """One to six edits: bytes flipped, cut, repeated; markup, entities and nesting inserted."""
    markup = (
        b"<table>",
        b"</div>",
        b"<figure><figcaption>",
        b"<noscript>",
        b"<picture><source srcset=",
        b"<pre>",
        b"&#x110000;",
    )
    markup += (
        b"<!--",
        b"<svg><foreignObject>",
        b"\x00",
        b"<base href=",
        b"<select>",
        b"]]>",
        b"<plaintext>",
        b"&" * 50,
        b"\xff\xfe",
    )
    changed = bytearray(html)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(6):
            case 0 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                del changed[at : rng.choice((at + rng.randint(1, 40), len(changed)))]
            case 2:
                changed[at:at] = changed[at : at + rng.randint(1, 200)] * rng.randint(1, 5)
            case 3:
                changed[at:at] = rng.choice(markup)
            case 4:
                changed[at:at] = rng.choice((b"<div>", b"<b>", b"<ul><li>", b"<a>")) * rng.choice((3, 300, 3000))
            case _:
                changed[at:at] = rng.randbytes(rng.randint(1, 30))
    return bytes(changed)


SAMPLE = f"""<!DOCTYPE html><html lang=en><head><meta charset=utf-8><title>Title</title><base href="/b/"></head>
<body class=page><nav><a href=/>Home</a></nav><header><h1>Title</h1></header><main><article><p>{PROSE}
<img src="1.png" srcset="1.png 1x, 2.png 2x"><figure><img data-src=3.png src="data:,">
<noscript><img src=3.png></noscript><figcaption>Caption &amp; more</figcaption></figure>
<table><tr><th>a<th>b<tr><td>1<td><img src=4.png></table><pre>code
  more</pre><ul><li><a href=1>1</a><li><a href=2>2</a></ul><p hidden>no</p><p style="display:none">no</p></article>
</main><footer>&copy; nobody</footer></body></html>""".encode()


def test_a_thousand_mutated_pages() -> None:
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


# --- WARC


def archive(path: Path, count: int = 12) -> dict[str, bytes]:
    """Write pages and images in turn; return the images."""
    images = {f"https://example.org/{n}.png": random.Random(n).randbytes(2000) for n in range(count)}
    with warc.WarcWriter(path) as writer:
        for number, (url, data) in enumerate(images.items()):
            writer.write(f"https://example.org/{number}.html", "text/html; charset=latin1", b"<p>page %d" % number * 30)
            writer.write(url, "image/png", data)
    return images


def record(
    head: str, body: bytes, url: str = "https://example.org/x", kind: str = "response", length: int | None = None
) -> bytes:
    """A record written by hand."""
    block = head.encode() + b"\r\n\r\n" + body
    size = len(block) if length is None else length
    lines = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2024-01-01T00:00:00Z\r\n"
    lines += f"Content-Type: application/http; msgtype={kind}\r\nContent-Length: {size}\r\n\r\n"
    return lines.encode() + block + b"\r\n\r\n"


PAGE = "HTTP/1.1 200 OK\r\nContent-Type: text/html"
FORMS: dict[str, Callable[[bytes], bytes]] = {
    "members": lambda data: data,
    "plain": gzip.decompress,
    "whole": lambda data: gzip.compress(gzip.decompress(data)),
}


@pytest.mark.parametrize("form", FORMS)
def test_pages_and_images_of_a_warc(tmp_path: Path, form: str) -> None:
    images = archive(tmp_path / "a.warc.gz")
    path = tmp_path / "b.warc"
    path.write_bytes(FORMS[form]((tmp_path / "a.warc.gz").read_bytes()))
    skipped: Counter[str] = Counter()
    found = list(warc.pages(path, skipped))
    assert found == [(f"https://example.org/{n}.html", b"<p>page %d" % n * 30, "iso-8859-1") for n in range(12)] or (
        [(url, body) for url, body, _ in found]
        == [(f"https://example.org/{n}.html", b"<p>page %d" % n * 30) for n in range(12)]
    )
    assert not skipped
    places = {response.url: response.position for response in warc.responses(path, skipped) if response.is_image}
    assert {url: warc.image_at(path, position, url) for url, position in places.items()} == images
    assert warc.image_at(path, 0, "https://example.org/none.png") is None


def test_the_same_responses_give_the_same_bytes(tmp_path: Path) -> None:
    archive(tmp_path / "a.warc.gz")
    archive(tmp_path / "b.warc.gz")
    assert (tmp_path / "a.warc.gz").read_bytes() == (tmp_path / "b.warc.gz").read_bytes()


def test_what_is_no_page_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.warc"
    zipped = gzip.compress(b"<p>zipped")
    path.write_bytes(
        record(PAGE, b"<p>one")
        + record("HTTP/1.1 404 Not Found\r\nContent-Type: text/html", b"<p>no")
        + record(PAGE, b"<p>dns", url="dns:example.org")
        + record("GET / HTTP/1.1\r\nHost: example.org", b"", kind="request")
        + record("HTTP/1.1 200 OK\r\nContent-Type: application/pdf", b"%PDF")
        + record(PAGE + "; charset=koi8-r", b"<p>" + "привет".encode("koi8-r"), url="<https://example.org/brackets>")
        + record(PAGE + "\r\nContent-Encoding: gzip", zipped)
        + record(PAGE + "\r\nContent-Encoding: gzip", b"<p>said to be zipped")
        + record(PAGE + "\r\nContent-Encoding: gzip", zipped[:12] + b"\xff" * 9)
        + record(PAGE + "\r\nContent-Encoding: gzip", gzip.compress(bytes(50_000_000)))
        + record(PAGE + "\r\nTransfer-Encoding: chunked", b"9\r\n<p>chunks\r\n0\r\n\r\n")
        + record(PAGE, b"<p>" + b"x" * html_rules.MAX_BYTES)
    )
    skipped: Counter[str] = Counter()
    found = list(warc.pages(path, skipped))
    assert [body.decode("koi8-r") for _, body, _ in found] == [
        "<p>one", "<p>привет", "<p>zipped", "<p>said to be zipped", "<p>chunks",
    ]  # fmt: skip
    assert found[1] == ("https://example.org/brackets", "<p>привет".encode("koi8-r"), "koi8-r")
    assert skipped == {
        warc.NOT_OK: 1, warc.OTHER_SCHEME: 1, warc.OTHER_TYPE: 1, warc.UNDECODABLE: 1, warc.TOO_LARGE: 2,
    }  # fmt: skip


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("length", [3, 60, 5000, 10**15, -1])
def test_a_wrong_length_costs_one_record(tmp_path: Path, length: int, zipped: bool) -> None:
    pack = gzip.compress if zipped else bytes
    good = [pack(record(PAGE, b"<p>page %d" % number * 20)) for number in range(6)]
    good[3] = pack(record(PAGE, b"<p>broken" * 20, length=length))
    (tmp_path / "a.warc").write_bytes(b"".join(good))
    skipped: Counter[str] = Counter()
    bodies = [body for _, body, _ in warc.pages(tmp_path / "a.warc", skipped)]
    assert bodies == [b"<p>page %d" % number * 20 for number in (0, 1, 2, 4, 5)]
    assert skipped[warc.BROKEN] >= 1


def test_a_file_that_was_cut_off_keeps_its_beginning(tmp_path: Path) -> None:
    archive(tmp_path / "a.warc.gz")
    data = (tmp_path / "a.warc.gz").read_bytes()
    (tmp_path / "b.warc.gz").write_bytes(data[:-500])
    skipped: Counter[str] = Counter()
    found = [response.url for response in warc.responses(tmp_path / "b.warc.gz", skipped)]
    assert len(found) == 23
    assert skipped == {warc.BROKEN: 1}


def test_three_hundred_mutated_warcs(tmp_path: Path) -> None:
    archive(tmp_path / "a.warc.gz", count=6)
    good, rng = (tmp_path / "a.warc.gz").read_bytes(), random.Random(5)
    kept: Counter[int] = Counter()
    broken: Counter[str] = Counter()
    for number in range(300):
        path = tmp_path / "m.warc"
        path.write_bytes(mutate(good if number % 2 else gzip.decompress(good), rng))
        kept[sum(1 for _ in warc.responses(path, broken))] += 1
    assert kept.total() == 300
    assert broken[warc.BROKEN] > 200
    assert sum(number * count for number, count in kept.items()) > 0.4 * 12 * 300


def test_the_packages_are_asked_for_by_name_and_only_when_needed() -> None:
    program = (
        "import sys\n"
        "import kosmos_data, kosmos_data.cli, kosmos_data.web, kosmos_data.web.page\n"
        "packages = ('fastwarc', 'selectolax', 'httpx', 'w3lib', 'datatrove')\n"
        "assert not any(name in sys.modules for name in packages)\n"
        "sys.modules.update(dict.fromkeys(packages))\n"
        "for use in ('from kosmos_data.web import fetch',\n"
        '            \'from kosmos_data.web.html import extract; extract(b"<p>", "")\',\n'
        '            \'from kosmos_data.web.warc import *; WarcWriter("/dev/null").write("u", "t", b"")\'):\n'
        "    try: exec(use)\n"
        "    except ModuleNotFoundError as error: assert 'pip install \"kosmos-metalm[web]\"' in str(error), error\n"
        "    else: raise AssertionError(use)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert done.returncode == 0, done.stderr
