"""A question and its answer as segments, in the one form in which KOSMOS-1 is asked (section 4.2)."""

from __future__ import annotations

from .document import Text


def turn(question: str, answer: str, last: bool) -> list[Text]:
    """``Question: … Answer:``, which is not supervised, and the answer.

    Args:
        question: as it is asked; white space around it is left out.
        answer: the same.
        last: of its document. The line end of every other turn belongs to its answer: a model trained on answers alone
            must learn to stop.
    """
    end = "" if last else "\n"
    return [Text(f"Question: {question.strip()} Answer:", supervised=False), Text(f" {answer.strip()}{end}")]
