"""Objectives on texts too short or too long for them, on documents with spans of their own, and their errors."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kosmos.processing_kosmos import KosmosProcessor
from kosmos_data import Document, Image, Span, Text, objectives
from kosmos_data.errors import BadSample
from kosmos_data.example import Example
from kosmos_data.objectives import fim, glm
from kosmos_data.objectives._arrange import windows
from kosmos_data.objectives._flatten import flatten


def test_long_documents_become_windows(objective_processor: KosmosProcessor, objective_words: list[str]) -> None:
    document = Document("k", [Text(" ".join(np.random.default_rng(0).choice(objective_words, 1000)))])
    whole = flatten(document, objective_processor)
    pieces = list(windows(whole, 300))
    assert [len(piece.ids) for piece in pieces] == [250, 251, 250, 251]
    assert np.concatenate([piece.ids for piece in pieces]).tolist() == whole.ids.tolist()
    example = objectives.get("span_corruption", objective_processor, chunk_tokens=300)(document, 0)
    starts = np.flatnonzero(example.cuts)
    assert len(starts) == 3
    assert example.block.max() == 3
    assert (np.diff(example.position) == 1).all()


def test_each_window_draws_for_itself(objective_processor: KosmosProcessor, objective_words: list[str]) -> None:
    """The same text twice: hidden otherwise the second time."""
    text = " ".join(objective_words)
    make = objectives.get("span_corruption", objective_processor, chunk_tokens=82)
    example = make(Document("k", [Text(f"{text} {text}")]), 0)
    (middle,) = np.flatnonzero(example.cuts)
    first, second = (set(part[part >= 0].tolist()) for part in np.split(example.label, [middle]))
    assert len(first) > 10
    assert first != second


@pytest.mark.parametrize(
    ("name", "options", "always"),
    [
        ("span_corruption", {}, True),
        ("glm", {}, True),
        ("fim", {"rate": 1.0}, True),
        ("mlm", {}, True),
        ("semi_causal", {}, True),
        ("ul2", {}, False),  # its S denoiser can divide anything
        ("prefix_lm", {}, None),
        ("cm3", {}, None),  # plain text is one of its forms
    ],
)
def test_short_documents_stay_causal_and_are_counted(
    name: str,
    options: dict[str, float],
    always: bool | None,
    objective_processor: KosmosProcessor,
    objective_words: list[str],
    make_png,
) -> None:
    """A picture and one token of text: too short, for some draws or all, or never."""
    letter = Document("k", [Image(make_png(0)), Text("a" if name == "fim" else objective_words[0])])
    causal = objectives.get("causal", objective_processor)(letter, 0)
    short = objectives.get(name, objective_processor, **options)
    fallen = [example for example in (short(letter, seed) for seed in range(20)) if example.fallback]
    assert len(fallen) in {True: (20,), False: range(1, 20), None: (0,)}[always]
    for example in fallen:
        assert example.fallback == 1
        for column in ("token", "label", "weight", "block", "position", "cuts"):
            assert getattr(example, column).tolist() == getattr(causal, column).tolist()
    with pytest.raises(BadSample, match="empty"):
        short(Document("k", [Text("")]), 0)


def test_windows_that_fall_back_keep_every_token(
    objective_processor: KosmosProcessor, objective_words: list[str]
) -> None:
    """A long question and an answer of one token: nothing to hide; the question's windows are not called too short."""
    document = Document("k", [Text(" ".join(objective_words), supervised=False), Text(objective_words[0])])
    make = objectives.get("span_corruption", objective_processor, loss="supervised", chunk_tokens=30)
    example = make(document, 0)
    assert example.token.tolist() == flatten(document, objective_processor).ids[:-1].tolist()
    assert example.fallback == 1
    assert example.cuts.sum() == len(example)


def error(processor: KosmosProcessor, name: str, **options: object) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is what the caller compares
        objectives.get(name, processor, **options)
    return str(caught.value)


def test_mistakes_are_named(processor: KosmosProcessor, objective_processor: KosmosProcessor) -> None:
    missing = error(processor, "ul2")
    assert "lacks (first: '<extra_id_0>'); make the tokenizer with objectives=[ul2]" in missing
    good = objective_processor
    assert "prefix='all': choose" in error(good, "prefix_lm", prefix="all")
    assert "loss='some': choose" in error(good, "glm", loss="some")
    assert "density=1.5" in error(good, "span_corruption", density=1.5)
    assert "lower chunk_tokens to" in error(good, "span_corruption", density=0.5, chunk_tokens=4096)
    assert "chunk_tokens=2 must be at least 8" in error(good, "mlm", chunk_tokens=2)
    assert "variant='ul3': choose one of ul2, ul2r" in error(good, "ul2", variant="ul3")
    assert "no level 'word'" in error(good, "glm", levels={"word": 1})
    assert "needs loss: supervised" in error(good, "glm", levels={"answer": 1})
    assert "rate=2" in error(good, "fim", rate=2)
    assert "sampler='papre': choose one of paper, grid" in error(good, "semi_causal", sampler="papre")
    assert "1 ≤ min_length ≤ max_length" in error(good, "semi_causal", min_length=200)
    assert "did you mean 'sampler'" in error(good, "semi_causal", samplr="grid")
    assert "objective 'mlm': key \"density\"" in error(good, "mlm", density="much")
    assert "parts is empty" in error(good, "mixture", parts=[])
    assert "must not be negative" in error(good, "mixture", parts=[{"name": "causal", "weight": -1}])
    assert "an objective needs a name" in error(good, "mixture", parts=[{"weight": 1}])
    assert "until" in error(good, "schedule", stages=[{"name": "causal"}, {"name": "glm"}])
    assert "must rise" in error(
        good, "schedule", stages=[{"name": "causal", "until": 5}, {"name": "glm", "until": 5}, {"name": "causal"}]
    )
    inner = {"name": "schedule", "stages": [{"name": "causal"}]}
    assert "cannot be a part" in error(good, "mixture", parts=[inner])
    assert "no objective 'glmm'; did you mean 'glm'" in error(good, "mixture", parts=[{"name": "glmm"}])


@pytest.fixture
def prose(objective_words: list[str]) -> Document:
    """A question and an answer."""
    return Document(
        "k", [Text(" ".join(objective_words[:20]), supervised=False), Text(" ".join(objective_words[20:80]))]
    )


def test_an_objective_travels(case: str, build: Callable[..., Any], prose: Document) -> None:
    """A worker process gets it pickled, and it goes on drawing what it drew."""
    make = build(case)
    for field in ("token", "label", "weight", "block", "position", "position_in_span"):
        here, there = make(prose, 5), pickle.loads(pickle.dumps(make))(prose, 5)
        np.testing.assert_array_equal(getattr(here, field), getattr(there, field))


def test_the_step_is_in_the_call(objective_processor: KosmosProcessor, prose: Document) -> None:
    """A schedule, also as it is asked for by step, makes what its stage makes."""
    stages = [{"name": "prefix_lm", "until": 3}, {"name": "causal"}]
    schedule = objectives.get("schedule", objective_processor, stages=stages)
    for step, name in ((0, "prefix_lm"), (2, "prefix_lm"), (3, "causal")):
        alone = objectives.get(name, objective_processor)(prose, 7, step)
        np.testing.assert_array_equal(schedule(prose, 7, step).weight, alone.weight)
    assert schedule(prose, 7).weight.sum() < schedule(prose, 7, 3).weight.sum()


def test_a_tokenizer_is_enough_for_text(objective_processor: KosmosProcessor, objective_words: list[str]) -> None:
    document = Document("k", [Text(" ".join(objective_words[:60]))])
    for name in ("causal", "ul2", "glm", "semi_causal"):
        alone = objectives.get(name, tokenizer=objective_processor.tokenizer)(document, 3)
        whole = objectives.get(name, tokenizer=objective_processor)(document, 3)
        for field in ("token", "label", "weight", "block", "position", "position_in_span"):
            np.testing.assert_array_equal(getattr(alone, field), getattr(whole, field))


def test_special_tokens_of_a_mixture() -> None:
    parts = [{"name": "glm"}, {"name": "causal"}, {"name": "mixture", "parts": [{"name": "fim"}]}]
    assert objectives.special_tokens([{"name": "mixture", "parts": parts}]) == [*glm.TOKENS, *fim.TOKENS]


def test_spans_of_a_document_stand_in_every_objective(
    objective_processor: KosmosProcessor, objective_words: list[str]
) -> None:
    """A document with a text span of its own: the slots stay together, the payload is the span's."""
    text = " ".join(objective_words[:30])
    document = Document("k", [Text(text), Span("kaband mocort"), Text(text)])
    slot = objective_processor.span_slot_id
    for name in objectives.names():
        if name in ("mixture", "schedule", "peter", "cloze"):  # of others; test_reviews.py, test_objectives_choices.py
            continue
        options = {"min_length": 3, "max_length": 6} if name == "semi_causal" else {}
        example: Example = objectives.get(name, objective_processor, **options)(document, 1)
        payload = [0, *objective_processor.encode_text("kaband mocort")]
        (own,) = [span for span in example.placed if span.payload.tolist() == payload]
        assert (example.token[own.start : own.start + own.length] == slot).all()
        assert (example.token == slot).sum() == sum(span.length for span in example.placed)
