"""Half characters: what JSON can spell and no file or tokenizer takes."""

from __future__ import annotations


def whole(text: str) -> str:
    """``text`` with ``?`` for each half of a surrogate pair, which JSON can spell and no file or tokenizer takes."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
