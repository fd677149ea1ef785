"""Answers among their choices: the packed loss and its gradient against plain torch, documents, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kosmos.choices import NAMES
from kosmos.processing_kosmos import KosmosProcessor
from kosmos_data import DataConfig, Document, SourceConfig, Text, build_loader, objectives, write_shards
from kosmos_data.cloze import Cloze
from kosmos_data.document import Span, from_files, to_files
from kosmos_data.errors import NO_CHOICES, BadSample

FORMS = ("causal", "semi_causal", "prefix_lm", "span_corruption", "ul2", "glm", "fim", "cm3")
ASKED = {"x": 0, "y": 1, "z": 2}


def questions(words: list[str], wordings: list[str], count: int = 9) -> list[Document]:
    """Texts of unlike lengths with a blank in the middle, at the end or at the beginning."""
    draw = np.random.default_rng(0)
    documents = []
    for number in range(count):
        before, behind = (" ".join(draw.choice(words, draw.integers(1, 5))) for _ in range(2))
        answer = Text(wordings[number % len(wordings)], choices=tuple(wordings))
        segments = [Text(before, supervised=False), answer, Text(behind, supervised=False)]
        keep = ((0, 1, 2), (0, 1), (1, 2))[number % 3]
        documents.append(Document(f"{number}", [segments[at] for at in keep]))
    return documents


def pattern(document: Document) -> str:
    return "".join("<mask>" if segment.choices else segment.text for segment in document.segments)


def batch_of(
    documents: list[Document], processor: KosmosProcessor, folder: Path, count: int, **objective: Any
) -> list[dict[str, torch.Tensor]]:
    """The first micro-batches of a loader over the documents."""
    write_shards(folder, documents)
    source = SourceConfig("asked", str(folder), 1.0, objective)
    config = DataConfig([source], row_tokens=96, rows_per_step=4, rows_per_micro_batch=2)
    loader = build_loader(config, processor)
    micros = [micro for _ in range(count) for micro in next(loader).micro_batches]
    loader.close()
    return micros


def gradient(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_loss_and_gradient_equal_plain_torch(
    form: str, single: bool, tiny: Callable[..., Any], objective_processor: KosmosProcessor, objective_words: list[str]
) -> None:
    """One document after the other, unpacked, scored over the whole vocabulary, with autograd's own gradient."""
    a, b, c, *others = objective_words[:8]
    wordings = [a, b, c] if single else [a, f"{b} {c}", f"{c} {a} {b}"]
    documents = questions(others, wordings)
    objective = objectives.get("cloze", objective_processor, form=form)
    cloze = Cloze(objective_processor, dict(zip(ASKED, wordings, strict=True)), objective=form)
    model = tiny(objective_processor, "learned_2d").eval()
    expected, truth = torch.zeros(()), list(ASKED)
    for number, document in enumerate(documents):
        example = objective(document, 0)
        assert example.weight.sum() == 1
        asked = truth[number % 3]
        assert len(example.choices.questions) == 3
        expected = expected + cloze.loss(model, [pattern(document)], [asked])
    expected = expected / len(documents)
    expected.backward()
    wanted = gradient(model)
    model.zero_grad()
    micro = packed([objective(document, 0) for document in documents], objective_processor)
    output = model(**micro)
    output.loss.backward()
    torch.testing.assert_close(output.loss, expected.detach(), rtol=1e-5, atol=1e-6)
    weight = micro["loss_weight"]
    assert float((output.token_loss * weight).sum() / weight.sum()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, value in gradient(model).items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-6, msg=name)


def packed(examples: list[Any], processor: KosmosProcessor) -> dict[str, torch.Tensor]:
    """Examples in two rows of one micro-batch."""
    from kosmos_data.batch import collate
    from kosmos_data.packing import Piece, empty_row, fill_row

    half = len(examples) // 2
    rows = []
    for number, part in enumerate((examples[:half], examples[half:])):
        row = empty_row(number, 800, processor.tokenizer.pad_token_id)
        fill_row(row, [Piece(one, 0, 0, len(one), 0) for one in part], processor.tokenizer.bos_token_id, True)
        rows.append(row)
    return {name: value for name, value in collate(rows).items() if name != "source_ids"}


def test_choices_beside_other_losses(
    tiny: Callable[..., Any], objective_processor: KosmosProcessor, objective_words: list[str], tmp_path: Path
) -> None:
    """A mixture: the loss is the weighted mean over questions and tokens, whatever stands in the same rows."""
    a, b, *others = objective_words[:6]
    model = tiny(objective_processor, "learned_2d").eval()
    asked = [objectives.get("cloze", objective_processor)(one, 0) for one in questions(others, [a, b])]
    plain = [objectives.get("causal", objective_processor)(Document("t", [Text(" ".join(others))]), 0)]
    apart = [packed(part, objective_processor) for part in (asked, plain * 2)]
    both = packed([asked[0], *plain, *asked[1:], *plain], objective_processor)
    losses = [model(**micro) for micro in (*apart, both)]
    weights = [float(micro["loss_weight"].sum()) for micro in apart]
    mean = sum(float(one.loss) * weight for one, weight in zip(losses[:2], weights, strict=True)) / sum(weights)
    assert float(losses[2].loss) == pytest.approx(mean, rel=1e-5)
    assert float(model(**both, num_items_in_batch=1.0).loss) == pytest.approx(mean * sum(weights), rel=1e-5)
    model(**both).loss.backward()
    assert all(torch.isfinite(value).all() for value in gradient(model).values())


def test_the_loader_brings_choices(
    tiny: Callable[..., Any], objective_processor: KosmosProcessor, objective_words: list[str], tmp_path: Path
) -> None:
    """Candidates point at tokens that a question's document holds; a question is told once, with weight 1."""
    a, b, c, *others = objective_words[:8]
    documents = questions(others, [a, f"{b} {c}"], 12)
    micros = batch_of(documents, objective_processor, tmp_path / "asked", 2, name="cloze")
    for micro in micros:
        tokens, of_question, answers = (micro[name] for name in NAMES)
        assert (micro["shift_labels"] == -100).all()
        places = micro["loss_weight"].flatten().nonzero().squeeze(1)
        assert sorted(places.tolist()) == sorted(answers[:, 0].tolist())
        assert of_question.tolist() == sorted([*range(len(answers))] * 2)
        assert (tokens[:, 2].unique() == torch.arange(len(of_question))).all()
        assert (micro["document_ids"].flatten()[tokens[:, 0]] >= 0).all()
        owner = micro["document_ids"].flatten()[tokens[:, 0]] + 1000 * (tokens[:, 0] // 96)
        assert len(set(zip(owner.tolist(), tokens[:, 2].tolist(), strict=True))) == len(of_question)
        loss = tiny(objective_processor, "learned_2d")(
            **{name: value for name, value in micro.items() if name != "source_ids"}
        ).loss
        assert torch.isfinite(loss)


def test_a_document_keeps_its_choices() -> None:
    document = Document("a", [Text("is it?", supervised=False), Text("yes", choices=("yes", "no"))])
    assert from_files("a", to_files(document)) == document
    for choices, message in ((("no", "maybe"), "'yes', is not among them"), (("yes",), "at least two different")):
        with pytest.raises(ValueError, match=message):
            Text("yes", choices=choices)
    body = to_files(document)["json"].replace(b'["yes","no"]', b'["no","perhaps"]')
    with pytest.raises(BadSample, match="not among them"):
        from_files("a", {"json": body})


def test_what_is_no_question(objective_processor: KosmosProcessor, objective_words: list[str]) -> None:
    a, b = objective_words[:2]
    objective = objectives.get("cloze", objective_processor)
    asked = Text(a, choices=(a, b))
    bad = {
        "has 0 texts with choices": [Text(a)],
        "has 2 texts with choices": [asked, Text(b), asked],
        "empty or outside the vocabulary": [Text(a, choices=(a, "日本"))],
        "are the same tokens": [Text(a, choices=(a, f" {a} "))],
    }
    for message, segments in bad.items():
        with pytest.raises(BadSample, match=message) as caught:
            objective(Document("bad", segments), 0)
        assert caught.value.reason == NO_CHOICES
    with pytest.raises(ValueError, match="has no form of its own for a blank"):
        objectives.get("cloze", objective_processor, form="mixture")


def test_what_an_encoder_reads_comes_with_each_choice(
    objective_processor: KosmosProcessor, objective_words: list[str]
) -> None:
    """Slots before and behind the blank stay where they are read; a copy for each choice of several tokens."""
    a, b, c = objective_words[:3]
    slot = objective_processor.span_slot_id
    payloads = [[0, *objective_processor.encode_text(words)] for words in ("kaband mocort", "tiband")]
    for wordings in ((a, b), (a, f"{b} {c}", f"{c} {a} {b}")):
        answer = Text(wordings[1], choices=wordings)
        around = Span("kaband mocort"), Text(c, supervised=False), answer, Span("tiband"), Text(c, supervised=False)
        example = objectives.get("cloze", objective_processor)(Document("k", around), 0)
        copies = 1 if len(wordings) == 2 else 3
        assert [span.payload.tolist() for span in example.placed] == payloads * copies
        for span in example.placed:
            assert (example.token[span.start : span.start + span.length] == slot).all()
        assert (example.token == slot).sum() == sum(span.length for span in example.placed)
        assert example.document.max() == copies - 1


def test_special_tokens_are_those_of_the_form() -> None:
    assert objectives.special_tokens(["cloze"]) == objectives.special_tokens(["glm"])
    assert objectives.special_tokens([{"name": "cloze", "form": "causal"}]) == []
    assert objectives.special_tokens([{"name": "cloze", "form": "fim"}]) == objectives.special_tokens(["fim"])


def test_answers_of_several_tokens_need_the_document_mask(
    objective_processor: KosmosProcessor, objective_words: list[str], tmp_path: Path
) -> None:
    a, b, *others = objective_words[:6]
    write_shards(tmp_path / "asked", questions(others, [a, f"{a} {b}"]))
    source = SourceConfig("asked", str(tmp_path / "asked"), 1.0, {"name": "cloze"})
    config = DataConfig([source], row_tokens=96, rows_per_step=4, rows_per_micro_batch=2, document_mask=False)
    with pytest.raises(ValueError, match=r"set data\.document_mask: true"):
        next(build_loader(config, objective_processor))
