"""What is found of rows on the CPU, and what a GPU computes from it, against the one rule of attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kosmos import loss
from kosmos.attention import attend, plan_documents
from kosmos.masks import document_mask, flex_mask, sees
from kosmos.positions import KosmosPositions, rotate, turn_pairs
from kosmos.rows import find_packing, visible

LENGTHS = (128, 200, 384)


def random_rows(seed: int, length: int, blocks: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Rows of documents of any length, with padding behind some, and with a bidirectional block in some documents."""
    draw = torch.Generator().manual_seed(seed)
    share = (0.0, 0.004, 0.02, 0.2)[seed % 4]
    documents = (torch.rand(3, length, generator=draw) < share).long().cumsum(1)
    if seed % 2:
        documents[:, length - 7 * seed :] = -1
    if not blocks:
        return documents, None
    began = torch.rand(3, length, generator=draw) < 0.03
    numbers = (began.long().cumsum(1) + 1000 * documents).masked_fill(documents < 0, -1)
    return documents, torch.where(numbers % 2 == 0, numbers, -1)


@pytest.mark.parametrize("window", [None, 30])
@pytest.mark.parametrize("blocks", [False, True])
def test_block_mask_is_that_of_create_block_mask(blocks: bool, window: int | None) -> None:
    """The closed form lists the same tiles as torch's function that asks the rule about every pair."""
    from torch.nn.attention.flex_attention import create_block_mask

    for seed in range(10):
        documents, ids = random_rows(seed, LENGTHS[seed % 3], blocks)
        length = documents.shape[1]
        rule = sees(documents, ids, window)
        expected: Any = create_block_mask(rule, 3, None, length, length, device="cpu")
        made = flex_mask(documents, ids, window)
        assert torch.equal(made.to_dense(), expected.to_dense())
        for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
            assert torch.equal(getattr(made, name), getattr(expected, name)), name
        row, place = torch.arange(3)[:, None, None], torch.arange(length)
        dense = made.mask_mod(row, row, place[None, :, None], place[None, None, :])
        assert torch.equal(dense, document_mask(documents, ids, window))


def test_packing_is_described() -> None:
    documents = torch.tensor([[0, 0, 0, -1], [0, 0, 0, 0]])
    packing = find_packing(documents, None)
    assert packing.borders.tolist() == [0, 3, 4, 8]
    assert packing.alone
    assert not find_packing(torch.tensor([[0, 0, 1, 1]]), None).alone
    assert not find_packing(torch.tensor([[-1, 0, 0, 0]]), None).alone  # what follows padding would see it
    assert find_packing(documents, torch.tensor([[1, 1, -1, -1], [-1, 1, 1, -1]])).connected
    assert not find_packing(documents, torch.tensor([[1, -1, 1, -1], [-1, 1, 1, -1]])).connected
    with pytest.raises(ValueError, match="document 0 of row 1 is in several pieces"):
        find_packing(torch.tensor([[0, 0, 1], [0, 1, 0]]), None)


@pytest.mark.parametrize(
    ("documents", "blocks", "training", "half", "way"),
    [
        ([0, 0, 0, -1], None, True, True, "causal"),
        ([0, 0, 1, -1], None, True, True, "lengths"),
        ([0, 0, 1, -1], None, True, False, "flex"),
        ([0, 0, 1, -1], [0, 0, -1, -1], True, True, "flex"),
        ([0, 0, 0, 0], [0, -1, 0, -1], True, True, "dense"),  # a block in two pieces is no interval
        ([0, 0, 1, -1], None, False, True, "dense"),  # nothing is compiled for a prompt
    ],
)
def test_ways_of_a_gpu(documents: list[int], blocks: list[int] | None, training: bool, half: bool, way: str) -> None:
    """Which kernel packed rows take; the meta device stands for the GPU, since packing is known beforehand."""
    ids, own = torch.tensor([documents]), None if blocks is None else torch.tensor([blocks])
    known = find_packing(ids, own)
    plan = plan_documents(ids.to("meta"), None if own is None else own.to("meta"), training, half, known)
    assert plan.way == way


def test_dense_and_causal_ways_equal_runs() -> None:
    """What a GPU computes without its own kernels, computed on a CPU."""
    documents = torch.tensor([[0] * 10 + [-1] * 2, [0] * 12])
    states = [torch.randn(2, 12, 4, 8), *(torch.randn(2, 12, 2, 8) for _ in range(2))]
    wide = [states[0], *(one.repeat_interleave(2, 2) for one in states[1:])]
    real = (documents >= 0)[..., None, None]
    expected = attend(plan_documents(documents, None, True, True), *wide, 0.3)
    for plan in (
        plan_documents(documents.to("meta"), None, True, True, find_packing(documents, None)),
        plan_of_prompt(documents),
    ):
        torch.testing.assert_close(attend(plan, *states, 0.3) * real, expected, atol=1e-6, rtol=1e-5)


def plan_of_prompt(documents: torch.Tensor) -> Any:
    from kosmos.attention import AttentionPlan

    return AttentionPlan("dense", mask=document_mask(documents, None)[:, None])


def test_visible_keys_are_intervals() -> None:
    first, last = visible(torch.tensor([[0, 0, 0, 1, 1, -1]]), torch.tensor([[-1, 4, 4, 4, 4, -1]]))
    assert first.tolist() == [[0, 0, 0, 3, 3, 5]]
    assert last.tolist() == [[0, 2, 2, 4, 4, 5]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_real_rotation_equals_the_complex_one(config, dtype: torch.dtype) -> None:
    """To the last bit: a compiled block computes what an eager one does."""
    text = config(images=False).text_config
    rotation = KosmosPositions(text).rotation(torch.arange(100)[None])
    heads = torch.randn(2, 1, 100, 4, 16).to(dtype)
    turned = rotate(*heads, rotation)
    for index in range(2):
        assert torch.equal(turn_pairs(heads[index], rotation[:, :, index]), turned[index])


def test_one_pass_over_the_logits_equals_single_kernels() -> None:
    """The softmax that a GPU compiles, against the passes of a CPU."""
    hidden, matrix, labels = torch.randn(7, 8), torch.randn(30, 8), torch.randint(0, 30, (7, 1))
    expected = loss._passes(hidden, matrix, labels, torch.empty(7, 30))
    for made, wanted in zip(loss._softmax_gradient(hidden @ matrix.T, labels, torch.float32), expected, strict=True):
        torch.testing.assert_close(made, wanted, atol=1e-5, rtol=1e-5)


def test_a_described_batch_gives_the_same_loss(build, ids) -> None:
    """Forward with what was found beforehand, and without it: the same numbers, and the same refusals."""
    model = build()
    ids = ids.clone()
    ids[0, 3:11] = model.config.image_token_id
    labels = ids.roll(-1, 1).masked_fill(ids.roll(-1, 1) == model.config.image_token_id, -100)
    batch = {"input_ids": ids, "shift_labels": labels, "document_ids": torch.zeros_like(ids)}
    batch["pixel_values"] = torch.rand(1, 3, 32, 32)
    layout = model.model.describe_rows(**batch)
    assert torch.equal(model(**batch, layout=layout).token_loss, model(**batch).token_loss)
    with pytest.raises(ValueError, match="input_ids hold 99"):
        model.model.describe_rows(**{**batch, "input_ids": ids.masked_fill(ids == ids[1, 0], 99)})
    with pytest.raises(ValueError, match="label 97 is outside the vocabulary of 97"):
        model.model.describe_rows(**{**batch, "shift_labels": torch.full_like(ids, 97)})
