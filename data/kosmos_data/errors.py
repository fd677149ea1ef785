"""Why a sample was left out: the one exception that reading, decoding and encoding raise for a bad sample.

A bad sample is a fact about the data, not a bug and not the user's mistake: the loader counts it by ``reason`` and goes
on, deterministically. Reasons are short and few, so that they can be columns of a table.
"""

from __future__ import annotations

from typing import Final

TAR: Final = "broken tar"
JSON: Final = "broken json"
IMAGE_MISSING: Final = "image missing"
IMAGE_BROKEN: Final = "image broken"
IMAGE_TOO_LARGE: Final = "image too large"
EMPTY: Final = "empty"
UNSUPERVISED: Final = "no supervised token"
TOO_LONG: Final = "longer than a row"
SPAN_TOO_LONG: Final = "span too long"
NOT_HTML: Final = "not HTML"
PAGE_TOO_LARGE: Final = "page too large"
PAGE_TOO_DEEP: Final = "page nested too deep"
PAGE_WITHOUT_TEXT: Final = "page without text"


class BadSample(Exception):  # noqa: N818 - it names the sample, not an error of the program
    """A sample that cannot be used.

    Args:
        reason: one of the constants of this module; what it is counted under.
        detail: free text for the person who looks into it.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
