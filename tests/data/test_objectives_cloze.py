"""Cloze classification: scores against a slow reference, a task that is learnt, errors; positions with blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kosmos.processing_kosmos import KosmosProcessor
from kosmos_data import DataConfig, Document, SourceConfig, Text, build_loader, write_shards
from kosmos_data.cloze import Cloze


@pytest.mark.parametrize("positions", ["learned_2d", "rope"])
def test_scores_equal_a_slow_reference(
    positions: str, tiny: Callable[..., Any], objective_processor: KosmosProcessor, objective_words: list[str]
) -> None:
    """Σ log p of the words and <eop>, one text, one class and one token at a time."""
    a, b, c, d, e = objective_words[:5]
    model = tiny(objective_processor, positions).eval()
    cloze = Cloze(objective_processor, {"x": a, "y": f"{b} {c}", "z": f"{a} {c} {b}"}, positions == "learned_2d", 0.5)
    texts = [f"{d} <mask> {e}", f"{e} {d} {d} <mask>"]
    encode, (mask, sop, eop) = (
        objective_processor.encode_text,
        objective_processor.tokenizer.convert_tokens_to_ids(["<mask>", "<sop>", "<eop>"]),
    )
    with torch.no_grad():
        found = cloze.scores(model, texts)
        for row, text in zip(found, texts, strict=True):
            left, right = text.split("<mask>")
            part_a = [0, *encode(left), mask, *encode(right), 2]
            for score, words in zip(row, (a, f"{b} {c}", f"{a} {c} {b}"), strict=True):
                answer, total = encode(words), 0.0
                for step, target in enumerate([*answer, eop]):
                    ids = torch.tensor([[*part_a, sop, *answer[:step]]])
                    length = ids.shape[1]
                    block = (torch.arange(length) < len(part_a)).long()[None] - 1
                    where = {"position_ids": torch.arange(length)[None]}
                    if positions == "learned_2d":
                        place = part_a.index(mask)
                        where["position_ids"] = torch.tensor([[*range(len(part_a)), *[place] * (step + 1)]])
                        where["position_in_span"] = torch.tensor([[*[0] * len(part_a), *range(1, step + 2)]])
                    logits = model(input_ids=ids, block_ids=block, **where).logits
                    total += float(logits[0, -1].log_softmax(-1)[target])
                assert float(score) == pytest.approx(total / len(answer) ** 0.5, abs=1e-4)


def test_single_tokens_take_one_pass_and_learn(
    tiny: Callable[..., Any], objective_processor: KosmosProcessor, objective_words: list[str]
) -> None:
    """Which of two words stands in the text: wrong half of the time at first, known after a few steps."""
    one, two, *others = objective_words[:12]
    model = tiny(objective_processor, "learned_2d")
    cloze = Cloze(objective_processor, {"yes": "tiband", "no": "mocort"})
    assert cloze.single_token
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.permutation([(one, two)[n % 2], *rng.choice(others, 3)])) + " <mask>" for n in range(32)]
    truth = ["yes", "no"] * 16
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    first = float(cloze.loss(model, texts, truth))
    for _ in range(25):
        optimizer.zero_grad()
        cloze.loss(model, texts, truth).backward()
        optimizer.step()
    with torch.no_grad():
        right = (cloze.scores(model, texts).argmax(1) == torch.tensor([0, 1] * 16)).float().mean()
    assert first > 0.5
    assert right > 0.9


FORMS = {  # the example, | behind what sees both ways; what is judged
    "causal": ("<s> L A B R", "A B R </s>"),
    "semi_causal": ("<s> L A B R", "A B R </s>"),
    "prefix_lm": ("<s> L | A B R", "A B R </s>"),
    "span_corruption": ("<s> L <extra_id_0> R | <extra_id_0> A B", "A B </s>"),
    "ul2": ("<s> [NLU] L <extra_id_0> R | <extra_id_0> A B", "A B </s>"),
    "glm": ("<s> L <mask> R </s> | <sop> A B", "A B <eop>"),
    "fim": ("<s> <fim_prefix> L <fim_suffix> R <fim_middle> A B", "A B </s>"),
    "cm3": ("<s> L <extra_id_0> R <extra_id_0> A B <eos_span>", "A B <eos_span>"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_blank_in_the_form_of_each_objective(
    form: str, tiny: Callable[..., Any], objective_processor: KosmosProcessor, objective_words: list[str]
) -> None:
    """The layout that the objective trains; scores are sums over what is judged, of one text and class at a time."""
    tokenizer = objective_processor.tokenizer
    names = dict(zip("LABR", objective_words, strict=False))

    def ids(words: str) -> list[int]:
        return [tokenizer.convert_tokens_to_ids("▁" + names[word] if word in names else word) for word in words.split()]

    layout, judged = FORMS[form]
    before, bar, behind = layout.rpartition("|")
    cloze = Cloze(objective_processor, {"x": f"{names['A']} {names['B']}", "y": names["B"]}, objective=form)
    text = f"{names['L']} <mask> {names['R']}"
    example = cloze.example(text, cloze.wordings[0])
    assert example.token.tolist() == ids(before + behind)
    assert int((example.block >= 0).sum()) == (len(before.split()) if bar else 0)
    assert example.label[example.weight > 0].tolist() == ids(judged)
    model = tiny(objective_processor, "learned_2d").eval()
    with torch.no_grad():
        found = cloze.scores(model, [f"{names['A']} {text}", text])[1]
        for score, wording in zip(found, cloze.wordings, strict=True):
            one = cloze.example(text, wording)
            columns = (one.token, one.block, one.position, one.position_in_span)
            names_of = ("input_ids", "block_ids", "position_ids", "position_in_span")
            rows = {name: torch.tensor(column)[None].long() for name, column in zip(names_of, columns, strict=True)}
            logits = model(**rows).logits[0].log_softmax(-1)
            total = sum(float(logits[t, one.label[t]]) for t in np.flatnonzero(one.weight > 0))
            assert float(score) == pytest.approx(total, abs=1e-4)


def test_one_pass_asks_for_a_single_word_where_nothing_follows_it(
    tiny: Callable[..., Any], objective_processor: KosmosProcessor, objective_words: list[str]
) -> None:
    """Forms that write the blank last take one pass; a causal model must read what follows behind each word."""
    a, b, c = objective_words[:3]
    model = tiny(objective_processor, "learned_2d").eval()
    passes = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    for form in FORMS:
        Cloze(objective_processor, {"x": a, "y": b}, objective=form).scores(model, [f"{c} <mask> {c}"])
    looks_behind = ("causal", "semi_causal", "prefix_lm")
    assert passes == [2 if form in looks_behind else 1 for form in FORMS]


def test_objectives_without_a_form_of_a_blank(objective_processor: KosmosProcessor) -> None:
    for name in ("mixture", "schedule", "mlm"):
        with pytest.raises(ValueError, match="has no form of its own for a blank"):
            Cloze(objective_processor, {"x": "tiband", "y": "mocort"}, objective=name)
    with pytest.raises(ValueError, match="did you mean 'cm3'"):
        Cloze(objective_processor, {"x": "tiband", "y": "mocort"}, objective="cm4")


@pytest.mark.parametrize(
    ("verbalizers", "message"),
    [
        ({"x": "tiband", "y": "日本"}, "verbalizer '日本' of class 'y' has a token outside the vocabulary"),
        ({"x": "tiband", "y": " "}, "class 'y' is empty"),
        ({"x": "tiband"}, "at least two classes"),
        ({"x": "tiband", "y": " tiband "}, "the same wording"),
    ],
)
def test_wordings_that_cannot_work(verbalizers: dict, message: str, objective_processor: KosmosProcessor) -> None:
    with pytest.raises(ValueError, match=message):
        Cloze(objective_processor, verbalizers)


def test_a_pattern_has_one_blank(objective_processor: KosmosProcessor) -> None:
    cloze = Cloze(objective_processor, {"x": "tiband", "y": "mocort"})
    with pytest.raises(ValueError, match="has 2 <mask>; it needs exactly one"):
        cloze.example("a <mask> b <mask>", cloze.wordings[0])


def test_xpos_refuses_blocks_and_rope_takes_them(
    tiny: Callable[..., Any], objective_processor: KosmosProcessor, objective_words: list[str], tmp_path: Path
) -> None:
    """Keys to the right would be amplified; the error names the setting that helps, and with it the batch runs."""
    rng = np.random.default_rng(0)
    texts = (" ".join(rng.choice(objective_words, 40)) for _ in range(20))
    write_shards(tmp_path / "prose", (Document(f"{number}", [Text(text)]) for number, text in enumerate(texts)))

    def batch(**objective: object) -> dict[str, torch.Tensor]:
        source = SourceConfig("prose", str(tmp_path / "prose"), 1.0, objective)
        config = DataConfig([source], row_tokens=128, rows_per_step=2, rows_per_micro_batch=2)
        micro = next(build_loader(config, objective_processor)).micro_batches[0]
        return {name: value for name, value in micro.items() if name != "source_ids"}

    prefix = batch(name="prefix_lm")
    with pytest.raises(ValueError, match=r"amplifies keys to the right .* set position_type to 'rope' or 'learned_2d'"):
        tiny(objective_processor, "xpos")(**prefix)
    assert torch.isfinite(tiny(objective_processor, "rope")(**prefix).loss)
    assert torch.isfinite(tiny(objective_processor, "xpos")(**batch(name="fim")).loss)
    with pytest.raises(ValueError, match="only 'learned_2d' reads it"):
        tiny(objective_processor, "rope")(**batch(name="glm"))
    assert torch.isfinite(tiny(objective_processor, "rope")(**batch(name="glm", two_positions=False)).loss)
    assert torch.isfinite(tiny(objective_processor, "learned_2d")(**batch(name="glm")).loss)
