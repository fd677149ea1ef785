"""The pages as HTML: one item, and the end. They name no system, and all that a file says stands there as text."""

from __future__ import annotations

from html import escape
from pathlib import Path

from kosmos.plain import counted

from .session import Session

_HERE = Path(__file__).parent
FILES = {"page.css": "text/css", "page.js": "text/javascript"}
"""What every page needs, and nothing else of this folder is served."""

_BUTTONS = (
    ("left", "Left", "←", "ArrowLeft"),
    ("tie", "Tie", "T", "t"),
    ("right", "Right", "→", "ArrowRight"),
    ("skip", "Skip", "S", "s"),
)
_HELP = (("←", "the left one is better"), ("→", "the right one is better"), ("T", "neither is"), ("S", "skip it"),
         ("B", "back to the one before"), ("?", "show or hide this"))  # fmt: skip


def static(name: str) -> bytes:
    """The style or the script of the pages."""
    assert name in FILES
    return (_HERE / name).read_bytes()


def item(session: Session, place: int, error: str = "") -> str:
    """The page of the item at ``place``; ``error`` says why the judgement just sent was not kept."""
    pair = session.pairs[place]
    judged = session.judged(place)
    texts = [pair.texts[side] for side in session.sides(pair)]
    numbers = range(1, len(pair.images) + 1)
    images = "".join(f'<img src="{place + 1}/{number}" alt="picture {number} of this item">' for number in numbers)
    parts = [
        f'<p class="error" role="alert">{escape(error)}</p>' if error else "",
        f"<h1>{escape(session.question)}</h1>",
        f'<div class="asked">{images}<div>',
        _quoted("context", "Context", pair.context),
        _quoted("prompt", "Prompt", pair.prompt),
        '</div></div><div class="texts">',
        *(_text(name, text) for name, text in zip(("Left", "Right"), texts, strict=True)),
        "</div>",
        f'<form method="post" action="{place + 1}"><div class="choices">',
        *(_button(*button, judged) for button in _BUTTONS),
        "</div></form>",
        _foot(place),
    ]
    return _document(session, f"Item {place + 1} of {len(session.pairs)}", parts)


def end(session: Session) -> str:
    """The page behind the last item, which still says no name: one may go back."""
    counts = session.counts()
    skipped = session.skipped()
    words = [counted(counts["tie"], "tie")] if counts["tie"] else []
    words += [f"{counts['skip']} skipped"] if counts["skip"] else []
    parts = [
        "<h1>All done, thank you</h1>",
        f"<p>{counted(counts.total(), 'item')} judged{' (' + ', '.join(words) + ')' if words else ''}. "
        "Everything is kept; you can go back and change it.</p>",
        f'<p><a href="{skipped + 1}">Look at the first one that was skipped</a></p>' if skipped is not None else "",
        f'<p><a data-key="b" href="{len(session.pairs)}">Back</a></p>' if session.pairs else "",
        '<form method="post" action="finish"><button class="finish">Finish: close and show who won</button></form>',
    ]
    return _document(session, "Done", parts)


def closed() -> str:
    """What stays in the browser when the server has gone."""
    return _page("Closed", "<main><h1>Closed</h1><p>The result is in the terminal. You can close this page.</p></main>")


def _text(side: str, text: str) -> str:
    shown = escape(text) if text else "<em>(nothing was written)</em>"
    name = side.lower()
    head = f'<h2 id="{name}-h">{side}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-h">{head}<p dir="auto">{shown}</p></section>'


def _quoted(name: str, title: str, text: str) -> str:
    return f'<section class="{name}"><h2>{title}</h2><p dir="auto">{escape(text)}</p></section>' if text else ""


def _button(value: str, name: str, key: str, code: str, judged: str | None) -> str:
    pressed = ' aria-pressed="true"' if judged == value else ""
    return (
        f'<button name="judgement" value="{value}" data-key="{code}" aria-keyshortcuts="{code}"{pressed}>'
        f"{name} <kbd aria-hidden=true>{key}</kbd></button>"
    )


def _foot(place: int) -> str:
    keys = "".join(f"<dt><kbd>{key}</kbd></dt><dd>{escape(what)}</dd>" for key, what in _HELP)
    to = f'<a data-key="b" aria-keyshortcuts="b" href="{place}">Back <kbd aria-hidden=true>B</kbd></a>'
    back = to if place else ""
    return f"<nav>{back}<details><summary>Keys <kbd aria-hidden=true>?</kbd></summary><dl>{keys}</dl></details></nav>"


def _document(session: Session, where: str, parts: list[str]) -> str:
    done, total = session.counts().total(), len(session.pairs)
    bar = f'<progress max="{total or 1}" value="{done}" aria-label="judged"></progress>'
    head = f"<header><p>{where}<span>{done} of {total} judged</span></p>{bar}</header>"
    return _page(where, f"{head}<main>{''.join(parts)}</main>")


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><title>{title} · which is better?</title><link rel="icon" href="data:,">'
        f'<link rel="stylesheet" href="page.css"><script src="page.js" defer></script></head><body>{body}</body></html>'
    )
