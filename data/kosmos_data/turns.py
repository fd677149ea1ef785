"""A question and its answer as segments, in the one form in which KOSMOS-1 is asked (section 4.2)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from .document import Document, Text


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


def has_turns(document: Document) -> bool:
    """Whether a document marks what is asked and what is answered: the one is not supervised, the other is."""
    texts = [segment for segment in document.segments if isinstance(segment, Text) and segment.text.strip()]
    return any(text.supervised for text in texts) and not all(text.supervised for text in texts)


def conversations(questions: Sequence[tuple[str, str]], most: int, rng: random.Random) -> Iterator[list[Text]]:
    """A picture's (question, answer) pairs in random order, dealt out to documents of one to ``most`` turns each.

    Several documents, so that the first question of each is asked with nothing but the image to go by, which is how the
    model is tested.
    """
    rest = rng.sample(list(questions), len(questions))
    while rest:
        size = rng.randint(1, most)
        turns, rest = rest[:size], rest[size:]
        yield [part for place, pair in enumerate(turns) for part in turn(*pair, last=place == len(turns) - 1)]
