"""Extraction against trafilatura (and resiliparse where it is installed) on the same pages, in one process.

    kosmos data make docs --out corpora/docs
    python tests/benchmarks/bench_extraction.py corpora/docs/warc/*.warc.gz [--pages 100] [--rounds 5] [--agreement 50]

Pages are drawn by hash of their address. The extractors take turns, each with the setting that keeps images if it has
one; CPU time of this process is compared, and the ratios of the medians are what counts. Images in order: those that an
extractor returns whose addresses follow each other as the ``<img>`` elements of the page do. Agreement: F1 of the words
with trafilatura's main text (without tables, which we leave out by rule). Left out: all text of the same pages that is
not in ours, by the elements that it stands in, so that every loss can be looked at.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from html import unescape

import trafilatura
from selectolax.lexbor import LexborHTMLParser, LexborNode

from kosmos_data.errors import BadSample
from kosmos_data.web import warc
from kosmos_data.web.html.extract import extract
from kosmos_data.web.html.html_images import absolute

WebPage = tuple[str, bytes, str | None]
Images = list[str]


def ours(page: WebPage) -> tuple[str, Images]:
    url, html, encoding = page
    try:
        nodes = extract(html, url, encoding).nodes
    except BadSample:
        return "", []
    text = "\n".join(node for node in nodes if isinstance(node, str))
    return text, [node.url for node in nodes if not isinstance(node, str)]


def trafilaturas(page: WebPage) -> tuple[str, Images]:
    url, html, _ = page
    xml = trafilatura.extract(html, url=url, include_images=True, include_tables=False, output_format="xml") or ""
    text = unescape(re.sub(r"<[^>]*>", " ", xml.partition("<main>")[2].partition("</main>")[0]))
    return text, [absolute(src, url) or "" for src in re.findall(r'<graphic[^>]*?src="([^"]*)"', xml)]


def resiliparses(page: WebPage) -> tuple[str, Images]:
    from resiliparse.extract.html2text import extract_plain_text

    text = extract_plain_text(page[1].decode("utf-8", "replace"), main_content=True, alt_texts=True)
    return text, []  # it writes the alternative texts, not the addresses


def extractors() -> dict[str, Callable[[WebPage], tuple[str, Images]]]:
    found: dict[str, Callable[[WebPage], tuple[str, Images]]] = {"kosmos": ours, "trafilatura": trafilaturas}
    try:
        import resiliparse.extract.html2text  # noqa: F401
    except ImportError:
        return found
    return found | {"resiliparse": resiliparses}


def in_order(images: Images, page: WebPage) -> int:
    """How many of ``images`` stand in the page in this order: the longest common subsequence with its ``<img>``."""
    written = [absolute(tag.attributes.get("src") or "", page[0]) for tag in LexborHTMLParser(page[1]).css("img")]
    row = [0] * (len(written) + 1)
    for image in images:
        before = row
        row = [0]
        for at, other in enumerate(written):
            row.append(before[at] + 1 if image == other else max(before[at + 1], row[-1]))
    return row[-1]


def f1(one: str, other: str) -> float:
    """Of the words of two texts, each as often as it occurs."""
    a, b = (Counter(re.findall(r"\w+", text.lower())) for text in (one, other))
    return 2 * (a & b).total() / max(1, a.total() + b.total())


def left_out(pages: Sequence[WebPage]) -> tuple[int, Counter[str]]:
    """Characters of all text in the pages, and of what is not in ours, by the four elements around it."""
    total, lost = 0, Counter[str]()
    for page in pages:
        kept = re.sub(r"\s", "", ours(page)[0])
        body = LexborHTMLParser(page[1]).body
        for node in body.traverse(include_text=True) if body else ():
            text = re.sub(r"\s", "", node.text_content or "") if node.tag == "-text" else ""
            around = _around(node) if len(text) > 2 else []
            if not around or {"script", "style"} & {name.partition(".")[0] for name in around}:
                continue
            total += len(text)
            if text not in kept:
                lost[" > ".join(around[-4:])] += len(text)
    return total, lost


def _around(node: LexborNode) -> list[str]:
    """Tag and first class of every element around a node, outermost first."""
    found: list[str] = []
    parent = node.parent
    while parent is not None:
        name = (parent.attributes.get("class") or "").partition(" ")[0]
        found.append(f"{parent.tag}.{name}" if name else parent.tag or "")
        parent = parent.parent
    return found[::-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("warcs", nargs="+")
    parser.add_argument("--pages", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--agreement", type=int, default=50)
    arguments = parser.parse_args()
    everything = [page for path in arguments.warcs for page in warc.pages(path)]
    everything.sort(key=lambda page: hashlib.sha256(page[0].encode()).digest())
    pages = everything[: arguments.pages]
    programs = extractors()
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(arguments.rounds):
        for name, program in programs.items():
            start = time.process_time()
            for page in pages:
                program(page)
            seconds[name].append(time.process_time() - start)
    baseline = statistics.median(seconds["trafilatura"])
    report: dict[str, dict[str, float]] = {}
    for name, program in programs.items():
        found = [program(page) for page in pages]
        median = statistics.median(seconds[name])
        report[name] = {
            "pages/s": round(len(pages) / median, 1),
            "ratio to trafilatura": round(baseline / median, 2),
            "words": sum(len(text.split()) for text, _ in found),
            "images": sum(len(images) for _, images in found),
            "images in order": sum(in_order(images, page) for page, (_, images) in zip(pages, found, strict=True)),
        }
    print(json.dumps(report, indent=1))
    sample = everything[: arguments.agreement]
    agreement = sorted((f1(ours(page)[0], trafilaturas(page)[0]), page[0]) for page in sample)
    print(f"word F1 with trafilatura on {len(agreement)} pages: median {agreement[len(agreement) // 2][0]:.2f}")
    for score, url in agreement[:10]:
        print(f"  {score:.2f} {url}")
    total, lost = left_out(sample)
    print(f"left out: {lost.total():,} of {total:,} characters on {len(sample)} pages")
    for around, count in lost.most_common():
        print(f"  {count:6,} {around}")


if __name__ == "__main__":
    main()
