"""``kosmos data report``: the ledger of a corpus as a table, and as one HTML page that shows what was dropped.

The page is a single file that loads nothing: pictures are inside it, and its policy forbids any request. All that comes
from the web is escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from rich.table import Table

from kosmos.plain import escape as plain

from ..document import Document, Image
from ..errors import BadSample
from ..images import open_image
from ..index import INDEX_NAME
from ..reader import Corpus
from .ledger import (
    DOCUMENTS,
    IMAGES,
    PAGES,
    PARAGRAPHS,
    RECORDS,
    WITH_PAGE,
    Example,
    Ledger,
    Rule,
    read_ledger,
)
from .rules import SOURCES

REPORT_NAME = "report.html"
_SAMPLES = 9
_SIDE = 360  # pixels of a sample's pictures
_LONGEST_TEXT = 700
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_WHAT = {
    RECORDS: "What lies in the WARC files beside pages and images.",
    PAGES: "A page that is left at the end is a document.",
    IMAGES: "Every image that a page names, where it stands in the text.",
    DOCUMENTS: "Every record of the source, a document each.",
    PARAGRAPHS: "Left out of a page that stays, or gone with a page that does not.",
}


def table(ledger: Ledger) -> Table:
    """What every rule dropped, in order, with what was left after it."""
    columns = ("dropped", "share", "left")
    shown = Table("", "reason", "rule of", title="What the filters dropped", title_justify="left")
    for column in columns:
        shown.add_column(column, justify="right", no_wrap=True)
    for kind in (kind for kind in ledger.kinds if _is_shown(ledger, kind)):
        left = ledger.entered[kind]
        shown.add_row(f"[bold]{kind}[/bold]", "in", "", "", "", f"{left:,}")
        for stage, reason, rule in ledger.dropped(kind):
            left -= rule.count
            share = f"{_share(rule.count, ledger.entered[kind]):.2%}"
            names = (plain(name) for name in (stage, reason, SOURCES.get(reason, "")))
            shown.add_row(*names, f"{rule.count:,}", share, f"{left:,}")
        shown.add_row("", "[bold]out[/bold]", "", "", "", f"[bold]{ledger.kept[kind]:,}[/bold]", end_section=True)
    return shown


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` for the corpus in ``folder`` and return its path.

    A page that was written while the shards were still there stays as it is once they are not (recipe ``docs``).

    Raises:
        FileNotFoundError: there is no ledger, or no shards although the ledger says that documents were left.
        ValueError: the ledger or the index is malformed.
    """
    folder = Path(folder)
    ledger = read_ledger(folder)
    path = folder / REPORT_NAME
    if path.exists() and not (folder / INDEX_NAME).exists():
        return path
    corpus = Corpus(folder) if ledger.kept[_main(ledger)] else None
    path.write_text(page(folder.resolve().name, ledger, corpus), encoding="utf-8")
    return path


def page(name: str, ledger: Ledger, corpus: Corpus | None) -> str:
    """The whole HTML page."""
    style = resources.files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    body = [_head(name, ledger, corpus)]
    body += [
        _kind(ledger, kind)
        for kind in (DOCUMENTS, PAGES, IMAGES, PARAGRAPHS, RECORDS)
        if kind in ledger.kinds and _is_shown(ledger, kind)
    ]
    if corpus is not None:
        body.append(_samples(corpus, by_hash=_main(ledger) == PAGES))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(name)}: what was kept</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>\n{style}</style></head>\n'
        f"<body><main>\n{''.join(body)}</main></body></html>\n"
    )


def _head(name: str, ledger: Ledger, corpus: Corpus | None) -> str:
    main = _main(ledger)
    numbers = [(f"{main} read", f"{ledger.entered[main]:,}"), ("documents kept", f"{ledger.kept[main]:,}")]
    numbers.append((f"of the {main}", f"{_share(ledger.kept[main], ledger.entered[main]):.1%}"))
    if main == PAGES:
        numbers.append(("images kept", f"{ledger.kept[IMAGES]:,}"))
    if corpus is not None:
        numbers.append(("characters", f"{sum(shard.characters for shard in corpus.shards):,}"))
        numbers.append(("megabytes", f"{sum(shard.bytes for shard in corpus.shards) / 1e6:,.1f}"))
    tiles = "".join(f"<div><b>{value}</b><span>{label}</span></div>" for label, value in numbers)
    what = "From web pages to documents" if main == PAGES else "Documents that were kept and left out"
    title = f"<h1>{escape(name)}</h1><p>{what}</p>"
    return f'<header>{title}<div class="tiles">{tiles}</div></header>\n'


def _kind(ledger: Ledger, kind: str) -> str:
    """The funnel of one kind: a bar per stage, and under it the rules with their examples."""
    entered, left = ledger.entered[kind], ledger.entered[kind]
    stages: dict[str, list[tuple[str, Rule]]] = {}
    for stage, reason, rule in ledger.dropped(kind):
        stages.setdefault(stage, []).append((reason, rule))
    rows = [_bar("in", left, 0, entered)]
    for stage, rules in stages.items():
        count = sum(rule.count for _, rule in rules)
        left -= count
        rows.append(_bar(stage, left, count, entered))
        rows += [_rule(reason, rule, entered, kind) for reason, rule in rules]
    return f"<section><h2>{kind.capitalize()}</h2><p>{_WHAT[kind]}</p>\n{''.join(rows)}</section>\n"


def _bar(stage: str, left: int, dropped: int, entered: int) -> str:
    widths = [f"{100 * _share(count, entered):.3f}%" for count in (left, dropped)]
    minus = f' <span class="minus">−{dropped:,}</span>' if dropped else ""
    return (
        f'<div class="stage"><span class="name">{escape(stage)}</span>'
        f'<span class="bar"><i style="width:{widths[0]}"></i><u style="width:{widths[1]}"></u></span>'
        f'<span class="count">{left:,}{minus}</span></div>\n'
    )


def _rule(reason: str, rule: Rule, entered: int, kind: str) -> str:
    source = SOURCES.get(reason, "")
    line = (
        f'<span class="reason">{escape(reason)}</span><span class="source">{escape(source)}</span>'
        f'<span class="share">{_share(rule.count, entered):.1%}</span><span class="number">{rule.count:,}</span>'
    )
    if not rule.examples or reason == WITH_PAGE:
        return f'<div class="rule">{line}</div>\n'
    show = _image_example if kind == IMAGES else _text_example
    examples = "".join(show(example) for _, example in rule.examples)
    grid = "pictures" if kind == IMAGES else "texts"
    return f'<details class="rule"><summary>{line}</summary><div class="{grid}">{examples}</div></details>\n'


def _text_example(example: Example) -> str:
    title = f"<b>{escape(example['title'])}</b>" if example.get("title") else ""
    detail = f'<p class="detail">{escape(example["detail"])}</p>' if example.get("detail") else ""
    text = f"<p>{escape(example['text'])}</p>" if example.get("text") else ""
    return f"<article>{title}<cite>{escape(example['url'])}</cite>{text}{detail}</article>"


def _image_example(example: Example) -> str:
    thumbnail = str(example.get("thumbnail", ""))  # of a ledger that somebody else wrote, perhaps
    drawn = thumbnail.startswith("data:image/")
    shown = f'<img src="{escape(thumbnail)}" alt="">' if drawn else '<i class="none"></i>'
    size = "×".join(map(str, example["size"])) if "size" in example else ""
    detail = example.get("detail", "")
    name = example["url"].rsplit("/", 1)[-1] or example["url"]
    caption = " · ".join(escape(part) for part in (size, name[:60], detail) if part)
    place = escape(f"{example['url']} on {example['page']}")
    return f'<figure title="{place}">{shown}<figcaption>{caption}</figcaption></figure>'


def _samples(corpus: Corpus, by_hash: bool) -> str:
    """The first web pages, whose order is that of a hash; of other corpora, documents at equal distances."""
    shown = min(_SAMPLES, len(corpus))
    cards = "".join(_document(corpus[number if by_hash else number * len(corpus) // shown]) for number in range(shown))
    title = "<h2>Documents</h2><p>A uniform sample of what was kept.</p>"
    return f'<section>{title}<div class="documents">{cards}</div></section>\n'


def _document(document: Document) -> str:
    meta: Any = document.meta
    title, url = escape(str(meta.get("title") or document.key)), escape(str(meta.get("url", "")))
    return f"<article><h3>{title}</h3><cite>{url}</cite>{''.join(_segments(document))}</article>\n"


def _segments(document: Document) -> Iterator[str]:
    for segment in document.segments:
        if isinstance(segment, Image):
            yield f'<img src="{_thumbnail(segment.data)}" alt="">'
        else:
            text = segment.text if hasattr(segment, "text") else str(segment)
            if len(text) > _LONGEST_TEXT:
                text = f"{text[: _LONGEST_TEXT // 2]} … {text[-_LONGEST_TEXT // 2 :]}"
            yield "".join(f"<p>{escape(line)}</p>" for line in text.split("\n"))


def _thumbnail(data: bytes) -> str:
    try:
        picture = open_image(data).convert("RGBA")
    except BadSample:
        return ""
    picture.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=70)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _main(ledger: Ledger) -> str:
    """The kind of which each that is left is a document."""
    return DOCUMENTS if DOCUMENTS in ledger.kinds else PAGES


def _is_shown(ledger: Ledger, kind: str) -> bool:
    """Documents always, the parts of web pages where some were left out."""
    return kind == DOCUMENTS or ledger.entered[kind] != ledger.kept[kind]


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
