"""What ``kosmos tune`` does that ``kosmos train`` does not: it learns the answers, and says so."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from kosmos_data import Text
from kosmos_data.config import SourceConfig
from kosmos_data.errors import BadSample
from kosmos_data.reader import Corpus
from kosmos_data.turns import has_turns

from .config import TrainConfig

LOOK_AT = 200  # documents of a corpus


def learn_answers(config: TrainConfig) -> None:
    """Fill in what the settings leave open: loss on the answers only, and each answer with its own end."""
    for data in (config.data, config.eval.data):
        for source in data.sources if data is not None else ():
            if source.objective.get("name") == "causal":
                source.objective.setdefault("loss", "supervised")
    if config.turn_end is None:
        config.turn_end = "eos"


def answers_learnt(config: TrainConfig) -> Iterator[str]:
    """A line for each corpus: what it teaches.

    Raises:
        ValueError: a corpus of which the answers shall be learnt marks none.
    """
    for source in config.data.sources:
        if source.objective.get("name") == "cloze":
            yield _choices_learnt(source)
            continue
        if source.objective.get("loss") != "supervised":
            yield f"{source.name}: objective {source.objective}, not the answers alone"
            continue
        marked, looked = _count_marked(source)
        if not marked:
            raise ValueError(
                f"source {source.name!r}: none of its first {looked} documents has answers apart from what is asked "
                '("supervised": false); mark them, or say objective: {name: causal, loss: all}'
            )
        yield f"{source.name}: answers only ({marked} of its first {looked} documents mark questions)"


def _choices_learnt(source: SourceConfig) -> str:
    """The line of a corpus of answers among their choices; ValueError if it has none."""
    corpus, found = Corpus(source.shards), 0
    looked = min(LOOK_AT, len(corpus))
    for index in range(looked):
        with contextlib.suppress(BadSample):
            found += any(isinstance(segment, Text) and bool(segment.choices) for segment in corpus[index].segments)
    if not found:
        raise ValueError(
            f'source {source.name!r}: none of its first {looked} documents has a text with "choices", which objective '
            "cloze learns from; kosmos eval documents TASK makes such documents of an evaluation's training split"
        )
    return f"{source.name}: answers among their choices ({found} of its first {looked} documents)"


def _count_marked(source: SourceConfig) -> tuple[int, int]:
    """How many of a corpus's first documents mark questions, and how many were looked at."""
    corpus, marked = Corpus(source.shards), 0
    looked = min(LOOK_AT, len(corpus))
    for index in range(looked):
        with contextlib.suppress(BadSample):  # the loader counts those
            marked += has_turns(corpus[index])
    return marked, looked
