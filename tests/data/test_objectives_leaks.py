"""No objective shows a model its answer, and packing keeps documents apart: seen at the outputs of a real decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from kosmos import KosmosConfig, KosmosForConditionalGeneration
from kosmos.processing_kosmos import KosmosProcessor
from kosmos_data import Document, Text
from kosmos_data.example import Example
from kosmos_data.packing import Packer, Piece, empty_row, fill_row


def prose(words: Any) -> str:
    """Sentences of four words."""
    return " ".join(word + "." * (number % 4 == 3) for number, word in enumerate(words))


@pytest.fixture(scope="module")
def model(objective_processor: KosmosProcessor) -> KosmosForConditionalGeneration:
    """Two layers of the real decoder with GLM's positions, and a text encoder that shares the vocabulary."""
    size = len(objective_processor.tokenizer)
    torch.manual_seed(0)
    text = {
        "vocab_size": size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "position_type": "learned_2d",
        "max_position_embeddings": 256,
    }
    bert = {
        "model_type": "bert",
        "vocab_size": size,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = KosmosConfig(
        text_config=text,
        vision_config=None,
        image_token_id=None,
        span_encoder_config={"model_config": bert},
        span_token_id=objective_processor.span_slot_id,
    )
    return KosmosForConditionalGeneration(config).eval()


@torch.no_grad()
def logits(model: KosmosForConditionalGeneration, rows: list[tuple[np.ndarray, list[np.ndarray]]], example: Example):
    """Outputs for the same example with other tokens and span payloads in every row, (R, T, V)."""
    count, length = len(rows), len(example)
    same = {
        "document_ids": example.document,
        "block_ids": example.block,
        "position_ids": example.position,
        "position_in_span": example.position_in_span,
    }
    inputs = {name: torch.from_numpy(column).long().expand(count, length) for name, column in same.items()}
    inputs["input_ids"] = torch.from_numpy(np.stack([tokens for tokens, _ in rows])).long()
    payloads = [payload for _, spans in rows for payload in spans]
    if payloads:
        widest = max(map(len, payloads))
        ids = [np.pad(payload, (0, widest - len(payload))) for payload in payloads]
        mask = [np.arange(widest) < len(payload) for payload in payloads]
        inputs["span_input_ids"] = torch.from_numpy(np.stack(ids)).long()
        inputs["span_attention_mask"] = torch.from_numpy(np.stack(mask)).long()
    return model(**inputs).logits


def test_no_answer_leaks(
    case: str, build: Callable, model: Any, objective_processor: KosmosProcessor, objective_words: list[str]
) -> None:
    """Change a target wherever it stands in the input: what must predict it, and all before that, does not notice.

    Every word occurs once, so an input token with the target's id is the target, wherever the objective has put it.
    """
    ordinary = set(objective_processor.encode_text(" ".join(objective_words)))
    other = objective_processor.encode_text("x")[-1]
    checked = 0
    for seed in range(3):
        rng = np.random.default_rng(seed)
        document = Document("k", [Text(prose(rng.permutation(objective_words)[:40]))])
        example = build(case)(document, seed)
        payloads = [span.payload for span in example.placed]
        rows, targets = [(example.token, payloads)], []
        for t in np.flatnonzero(example.weight > 0):
            label = example.label[t]
            kept = case == "mlm" and example.token[t] == label  # 10 % stay on purpose
            everywhere = np.concatenate([example.token, *[payload[1:] for payload in payloads]])
            if label in ordinary and not kept and (everywhere == label).sum() == 1:
                token = np.where(example.token == label, other, example.token)
                rows.append((token, [np.where(payload == label, other, payload) for payload in payloads]))
                targets.append(t)
        base, *changed = logits(model, rows, example)
        for t, found in zip(targets, changed, strict=True):
            assert torch.allclose(found[: t + 1], base[: t + 1], atol=1e-5), f"output {t} of {case} sees its answer"
            assert not torch.equal(found, base), "the change reached the model"
            checked += 1
    assert checked > 3 or case == "mlm"


def test_the_leak_test_finds_a_leak(
    build: Callable, model: Any, objective_processor: KosmosProcessor, objective_words: list[str]
) -> None:
    """The released MetaLM mask, shifted by one, trains a token that the encoder has read: it is found."""
    document = Document("k", [Text(" ".join(objective_words[:40]))])
    example = build("semi_causal paper")(document, 1)
    (span, *_) = example.placed
    leaked, t = span.payload[2], span.start  # predicted at the first slot, whose state has read it
    payloads = [one.payload for one in example.placed]
    other = [np.where(payload == leaked, 5, payload) for payload in payloads]
    base, changed = logits(model, [(example.token, payloads), (example.token, other)], example)
    assert example.weight[t] == 0
    assert not torch.allclose(base[t], changed[t], atol=1e-5)


@pytest.mark.parametrize("case", ["prefix_lm", "glm token", "ul2", "semi_causal paper", "glm causal", "ul2 causal"])
def test_packing_keeps_documents_apart(
    case: str, build: Callable, model: Any, objective_processor: KosmosProcessor, objective_words: list[str]
) -> None:
    """Two examples in a row give the logits that each gives alone."""
    rng = np.random.default_rng(0)
    examples = [
        build(case)(Document("k", [Text(" ".join(rng.permutation(objective_words)[:30]))]), seed) for seed in range(2)
    ]
    total = sum(map(len, examples)) + 3
    row = empty_row(0, total, pad=1)
    assert all(Packer(total, 4, cut_all=False).possible(example) for example in examples)
    fill_row(row, [Piece(example, 0, 0, len(example), 0) for example in examples], bos=0, document_mask=True)
    names = ("token", "label", "document", "block", "position", "position_in_span")
    packed = Example(
        **dict(zip(names, row.fields, strict=False)),
        weight=row.weight,
        placed=[],
        cuts=np.zeros(total, dtype=bool),
    )
    together = logits(model, [(packed.token, [span.payload for span in row.placed])], packed)[0]
    at = 0
    for example in examples:
        alone = logits(model, [(example.token, [span.payload for span in example.placed])], example)[0]
        assert torch.allclose(together[at : at + len(example)], alone, atol=1e-5)
        at += len(example)
