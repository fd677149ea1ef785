"""A question and its answer as segments, in the one form in which KOSMOS-1 is asked (section 4.2)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from .document import Document, Image, Segment, Text


def turn(question: str, answer: str, last: bool) -> list[Text]:
    """``Question: … Answer:``, which is not supervised, and the answer.

    Args:
        question: as it is asked; white space around it is left out.
        answer: the same.
        last: of its document. The line end of every other turn belongs to its answer: a model trained on answers alone
            must learn to stop.
    """
    return [Text(f"Question: {question.strip()} Answer:", supervised=False), answered(answer, last)]


def answered(answer: str, last: bool) -> Text:
    """Return the answer of a :func:`turn`."""
    return Text(f" {answer.strip()}" + ("" if last else "\n"))


def asked(content: Sequence[str | Image]) -> list[Segment]:
    """Return the question of a turn whose pictures stand between its words, as chat templates write it.

    Several pictures stay where the question has them: "<image> or <image>?" means nothing otherwise. As in LLaVA's own
    code, a single one goes before its question.
    """
    pictures = [part for part in content if isinstance(part, Image)]
    if len(pictures) <= 1:
        text = "".join(part if isinstance(part, str) else " " for part in content)
        return [*pictures, Text(f"Question: {text.strip()} Answer:", supervised=False)]
    texts = [""]
    for part in content:
        texts = [*texts[:-1], texts[-1] + part] if isinstance(part, str) else [*texts, ""]
    texts = [text.strip() for text in texts]
    start = next((number for number, text in enumerate(texts) if text), len(texts) - 1)
    texts[start] = f"Question: {texts[start]}"
    texts[-1] = f"{texts[-1]} Answer:"
    segments: list[Segment] = []
    for number, text in enumerate(texts):
        segments += pictures[number - 1 : number] if number else []
        segments += [Text(text.strip(), supervised=False)] if text else []
    return segments


def has_turns(document: Document) -> bool:
    """Whether a document marks what is asked and what is answered: the one is not supervised, the other is."""
    texts = [segment for segment in document.segments if isinstance(segment, Text) and segment.text.strip()]
    return any(text.supervised for text in texts) and not all(text.supervised for text in texts)


def begins_with_question(document: Document) -> bool:
    """Whether a document is a dialogue: it :func:`has_turns`, and the first text is what is asked, or the system's."""
    first = next((segment for segment in document.segments if isinstance(segment, Text)), None)
    return first is not None and not first.supervised and has_turns(document)


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
