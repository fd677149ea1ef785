"""Why a sample was left out: the one exception that reading, decoding and encoding raise for a bad sample.

A bad sample is a fact about the data, not a bug and not the user's mistake: the loader counts it by ``reason`` and goes
on, deterministically. Reasons are short and few, so that they can be columns of a table.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

Made = TypeVar("Made")

TAR: Final = "broken tar"
JSON: Final = "broken json"
ENCODING: Final = "not UTF-8"
FIELDS: Final = "fields missing or of another kind"
LINE_TOO_LONG: Final = "line too long"
NO_TEXT: Final = "neither json nor txt"
NO_CAPTION: Final = "no caption"
NO_MARK: Final = "no <image> mark"
NO_ANSWER: Final = "no answer"
NO_QUESTION: Final = "answer without question"
NO_CONVERSATION: Final = "no conversation"
ROLE: Final = "role missing or unknown"
CLOSED: Final = "may not be read"
IMAGE_MISSING: Final = "image missing"
FILE_MISSING: Final = "sound or video missing"
UNREADABLE: Final = "sound or video unreadable"
IMAGE_BROKEN: Final = "image broken"
IMAGE_TOO_LARGE: Final = "image too large"
SAMPLE_TOO_LARGE: Final = "sample too large"
TEXT_TOO_LARGE: Final = "text too large"
EMPTY: Final = "empty"
BOXES: Final = "boxes that fit neither image nor text"
BOX_UNSURE: Final = "box of a low score"
UNSUPERVISED: Final = "no supervised token"
NO_CHOICES: Final = "no one answer with choices"
TOO_LONG: Final = "longer than a row"
ENCODED_TOO_LONG: Final = "longer than its encoder reads"
NOT_HTML: Final = "not HTML"
PAGE_TOO_LARGE: Final = "page too large"
PAGE_TOO_DEEP: Final = "page nested too deep"
PAGE_WITHOUT_TEXT: Final = "page without text"

SHOWN: Final = 10
"""So many examples of each reason are named."""
_LONGEST_EXAMPLE = 200


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

    def of(self, where: str) -> str:
        """The detail, beginning with the key or path ``where``, which not all who raise this know."""
        if self.detail.startswith(where):
            return self.detail
        return f"{where}: {self.detail}" if self.detail else where


class Tally(Counter[str]):
    """Counts by reason of what could not be used, and the keys or paths of the first :data:`SHOWN` of each.

    Attributes:
        records: how many whole records are among the counts; the others were parts (a picture of a page) that were
            left out of a document that stayed.
        parts: counts by reason of those parts.
        examples: by reason, where the first of them are.
    """

    def __init__(self, counts: Iterable[str] = ()) -> None:
        super().__init__(counts)
        self.records = 0
        self.parts: Counter[str] = Counter()
        self.examples: defaultdict[str, list[str]] = defaultdict(list)

    def count(self, reason: str, where: str, record: bool = True) -> None:
        """Count one more; ``record=False`` for a part of a record that is used without it."""
        self[reason] += 1
        self.records += record
        self.parts[reason] += not record
        if len(self.examples[reason]) < SHOWN:
            self.examples[reason].append(where[:_LONGEST_EXAMPLE])

    def usable(self, where: str, make: Callable[..., Iterable[Made]], *arguments: Any) -> list[Made]:
        """All that ``make`` yields of one record; nothing, and one more in the count, if the record is a bad sample.

        A record has whatever a stranger's program wrote: a field that is missing or of another kind is its fault too.
        """
        try:
            return list(make(*arguments))
        except BadSample as error:
            self.count(error.reason, error.of(where))
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
            what = f"no field {error}" if isinstance(error, KeyError) else str(error)
            self.count(FIELDS, f"{where}: {what}")
        return []

    def lines(self) -> list[str]:
        """One line for each reason: how many, why, and where the first are."""
        return [f"{number} × {why}: {_listed(self.examples[why], number)}" for why, number in self.most_common()]


def _listed(examples: list[str], number: int) -> str:
    return ", ".join(examples) + (" …" if number > len(examples) else "")
