"""Packed rows: the fast ways against the dense mask of the one rule, gradients included."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kosmos.attention import attend_runs
from kosmos.masks import document_mask, document_runs, flex_mask


@st.composite
def rows(draw) -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows of 24 tokens: documents with or without a bidirectional block, padding at the end."""
    documents, blocks = [], []
    for _ in range(2):
        row, block, number = [], [], 0
        while len(row) < 24:
            length = min(draw(st.integers(1, 12)), 24 - len(row))
            padding = draw(st.booleans()) and number > 0 and len(row) + length == 24
            prefix = draw(st.integers(0, length))
            row += [-1 if padding else number] * length
            block += [-1] * length if padding else [number] * prefix + [-1] * (length - prefix)
            number += 1
        documents.append(row)
        blocks.append(block)
    return torch.tensor(documents), torch.tensor(blocks)


def rule(documents: torch.Tensor, blocks: torch.Tensor | None, row: int, query: int, key: int) -> bool:
    """The rule of the design, written out."""
    if documents[row, query] != documents[row, key] or documents[row, query] < 0:
        return False
    same_block = blocks is not None and blocks[row, query] == blocks[row, key] and blocks[row, query] >= 0
    return key <= query or bool(same_block)


@given(rows(), st.booleans())
@settings(max_examples=30)
def test_dense_mask_is_the_rule(case: tuple[torch.Tensor, torch.Tensor], with_blocks: bool) -> None:
    documents, blocks = case
    blocks = blocks if with_blocks else None
    mask = document_mask(documents, blocks)
    for row in range(2):
        for query in range(24):
            if documents[row, query] >= 0:
                expected = [rule(documents, blocks, row, query, key) for key in range(24)]
                assert mask[row, query].tolist() == expected


@given(rows(), st.booleans())
@settings(max_examples=30)
def test_runs_equal_the_dense_mask(case: tuple[torch.Tensor, torch.Tensor], with_blocks: bool) -> None:
    documents, blocks = case
    blocks = blocks if with_blocks else None
    torch.manual_seed(0)
    leaves = [torch.randn(2, 24, 2, 8, requires_grad=True) for _ in range(3)]
    fast = attend_runs(*leaves, document_runs(documents, blocks), 0.3)
    mask = document_mask(documents, blocks)[:, None]
    dense = F.scaled_dot_product_attention(*(leaf.transpose(1, 2) for leaf in leaves), attn_mask=mask, scale=0.3)
    real = (documents >= 0)[..., None, None]
    dense = dense.transpose(1, 2) * real
    torch.testing.assert_close(fast, dense, atol=1e-6, rtol=1e-5)
    weight = torch.randn_like(dense)
    expected = torch.autograd.grad((dense * weight).sum(), leaves)
    for a, b in zip(torch.autograd.grad((fast * weight).sum(), leaves), expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_flex_equals_the_dense_mask() -> None:
    from torch.nn.attention.flex_attention import flex_attention

    documents = torch.tensor([[0] * 100 + [1] * 28, [0] * 50 + [1] * 60 + [-1] * 18])
    blocks = torch.full_like(documents, -1)
    blocks[0, 100:110], blocks[1, :30] = 7, 3
    query, key, value = torch.randn(3, 2, 2, 128, 16)
    mask = flex_mask(documents, blocks)
    fast = flex_attention(query, key, value, block_mask=mask, scale=0.25)
    dense = F.scaled_dot_product_attention(
        query, key, value, attn_mask=document_mask(documents, blocks)[:, None], scale=0.25
    )
    real = (documents >= 0)[:, None, :, None]
    torch.testing.assert_close(fast * real, dense * real, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_no_token_sees_the_future_or_another_document(build, ids) -> None:
    model = build(position="rope", images=False)
    documents = torch.tensor([[0] * 15 + [1] * 15] * 2)
    blocks = torch.full_like(documents, -1)
    blocks[:, 15:20] = 4
    before = model(input_ids=ids, document_ids=documents, block_ids=blocks).logits
    for changed in (3, 17, 25):
        other = ids.clone()
        other[:, changed] = 50
        after = model(input_ids=other, document_ids=documents, block_ids=blocks).logits
        moved = (after - before).abs().amax(-1)[0] > 1e-6
        expected = {3: range(3, 15), 17: range(15, 30), 25: range(25, 30)}[changed]
        assert moved.nonzero().flatten().tolist() == list(expected)


@torch.no_grad()
@pytest.mark.parametrize("position", ["rope", "sinusoidal", "learned_2d"])
def test_blocks_agree_between_kernels(build, ids, position: str) -> None:
    model = build(position=position, images=False)
    documents = torch.tensor([[0] * 12 + [1] * 18, [0] * 25 + [-1] * 5])
    blocks = torch.full_like(documents, -1)
    blocks[0, 12:17], blocks[1, :9] = 2, 0
    fast = model(input_ids=ids, document_ids=documents, block_ids=blocks).logits
    model.set_attn_implementation("eager")
    dense = model(input_ids=ids, document_ids=documents, block_ids=blocks).logits
    real = documents >= 0
    torch.testing.assert_close(fast[real], dense[real], atol=1e-5, rtol=0)


def test_bad_masks_are_refused(build, ids) -> None:
    model = build(images=False)
    documents = torch.zeros_like(ids)
    with pytest.raises(ValueError, match="position_type is 'xpos', which amplifies keys"):
        model(input_ids=ids, document_ids=documents, block_ids=documents)
    documents[0, 10:20] = 1
    with pytest.raises(ValueError, match="document 0 of row 0 is in several pieces"):
        model(input_ids=ids, document_ids=documents)
    with pytest.raises(ValueError, match="document_ids = -1"):
        model(input_ids=ids, document_ids=documents, attention_mask=torch.ones_like(ids))
