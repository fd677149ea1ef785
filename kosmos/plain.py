"""Text of others on a terminal: shown as text, whatever it holds."""

from __future__ import annotations

import re
import shlex

from .surrogates import whole

LONGEST = 2000
"""Characters of a message; what a file holds may be a megabyte."""


def printable(text: str) -> str:
    """``text`` without what moves a cursor, and without the halves of characters that odd bytes of a name become."""
    found = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace") if _is_whole(text) else whole(text)
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in found
    )


def one_line(text: str) -> str:
    """A message in one printable line of at most :data:`LONGEST` characters."""
    line = " ".join(printable(text[: 4 * LONGEST]).split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 2]} …"


def pasted(word: object) -> str:
    """Return a path, or another word of a command that a message advises, so that a shell reads it as one word."""
    return shlex.quote(str(word))


def counted(number: int, noun: str) -> str:
    """``1 shard``, ``2,000 shards``."""
    plural = "es" if noun.endswith(("ch", "sh", "s", "x")) else "s"
    return f"{number:,} {noun}{'' if number == 1 else plural}"


def _is_whole(text: str) -> bool:
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a pair that JSON spelled, and no byte of a name
        return False
    return True


def escape(text: object) -> str:
    """Any text as rich prints it unchanged: no ``[tag]`` in it is markup, and no sequence moves the cursor."""
    from rich.markup import escape as without_markup

    # rich takes the backslash before any bracket away, but doubles those before a tag only
    return without_markup(re.sub(r"\\(?=\[(?![a-z#/@][^[]*?\]))", r"\\\\", printable(str(text))))


def styled(style: str, text: object) -> str:
    """Any text in a style of rich; backslashes at its end would take the end of the style for text."""
    ending = len(shown := printable(str(text))) - len(shown.rstrip("\\"))
    return f"[{style}]{escape(text).rstrip(chr(92))}{chr(92) * 2 * ending}[/{style}]"
