"""Spans laid into few rows: each is read as if it were alone, and fewer places are read."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kosmos.configuration_kosmos import KosmosSpanEncoderConfig
from kosmos.encoders import SpanEncoder
from kosmos.span_rows import lay_in_rows

FIELDS = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
FIELDS |= {"num_attention_heads": 2, "max_position_embeddings": 40}
lengths_of_spans = st.lists(st.integers(2, 12), min_size=1, max_size=12)


def spans_of(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Ids, padded on the right, and their mask."""
    generator = torch.Generator().manual_seed(len(lengths))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return torch.randint(3, 50, mask.shape, generator=generator) * mask, mask


@pytest.fixture(scope="module", params=[("bert", 0), ("roberta", 1), ("xlm-roberta", 2), ("distilbert", 0)])
def encoder(request: pytest.FixtureRequest) -> SpanEncoder:
    """Positions begin at 0, or behind the id of padding, or are not taken; the last block learns."""
    torch.manual_seed(0)
    fields = dict(zip(("model_type", "pad_token_id"), request.param, strict=True)) | FIELDS
    return SpanEncoder(KosmosSpanEncoderConfig(model_config=fields, train_last_blocks=1))


@given(lengths=lengths_of_spans)
def test_each_span_is_read_as_if_alone(encoder: SpanEncoder, lengths: list[int]) -> None:
    ids, mask = spans_of(lengths)
    alone = torch.cat([encoder(ids[span : span + 1, :length]) for span, length in enumerate(lengths)])
    torch.testing.assert_close(encoder(ids, mask), alone, atol=1e-5, rtol=1e-4)


def test_gradients_are_those_of_padded_spans(encoder: SpanEncoder) -> None:
    ids, mask = spans_of([9, 2, 5, 3, 2, 9])
    learning = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    assert learning
    valid = mask[:, 1:].flatten().nonzero().squeeze(1)
    rows = encoder.lay_in_rows(ids, mask)
    assert (rows is None) == (encoder.encoder.config.model_type == "distilbert")
    found = [torch.autograd.grad(encoder(ids, mask, valid, way).square().sum(), learning) for way in (rows, None)]
    for laid, padded in zip(*found, strict=True):
        torch.testing.assert_close(laid, padded, atol=1e-5, rtol=1e-4)


@given(lengths=lengths_of_spans)
def test_rows_hold_every_token_once(lengths: list[int]) -> None:
    """Nothing is lost, no row is longer than the longest span, and what is gained is less padding."""
    ids, mask = spans_of(lengths)
    rows = lay_in_rows(ids, mask)
    if rows is None:
        return
    tokens, places, spans = rows.tokens.flatten(1)
    assert rows.tokens.shape[1] < len(lengths)
    assert rows.tokens.shape[2] == max(lengths)
    assert torch.equal(tokens[rows.taken], ids[:, 1:][mask[:, 1:].bool()])
    for span, length in enumerate(lengths):
        assert places[spans == span].tolist() == list(range(length))
        assert torch.equal(tokens[spans == span], ids[span, :length])
    assert int((spans < 0).sum()) == spans.numel() - sum(lengths)


def test_rows_are_made_only_of_what_has_padding_on_the_right() -> None:
    ids, mask = spans_of([4, 2, 2])
    laid = lay_in_rows(ids, mask)
    assert laid is not None
    assert laid.tokens[2].tolist() == [[0, 0, 0, 0], [1, 1, 2, 2]]
    assert lay_in_rows(ids.flip(1), mask.flip(1)) is None
    assert lay_in_rows(*spans_of([4, 4])) is None
