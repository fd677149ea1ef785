"""xPos against the paper's formula written as loops, and the invariants of every position type."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kosmos.configuration_kosmos import KosmosTextConfig
from kosmos.positions import KosmosPositions, count_positions, rotate, sinusoid


def xpos_by_hand(vector: list[float], n: float, sign: int, base: int = 512) -> list[float]:
    """Algorithm 1 of arXiv 2212.10554, one pair at a time; sign +1 for queries, -1 for keys."""
    out, width = [], len(vector)
    for j in range(width // 2):
        theta = 10000 ** (-j / (width / 2))
        zeta = (2 * j + 0.4 * width) / (1.4 * width)
        scale = zeta ** (sign * n / base)
        a, b = vector[2 * j], vector[2 * j + 1]
        out += [(a * math.cos(n * theta) - b * math.sin(n * theta)) * scale]
        out += [(b * math.cos(n * theta) + a * math.sin(n * theta)) * scale]
    return out


def config(**fields) -> KosmosTextConfig:
    return KosmosTextConfig(hidden_size=16, num_attention_heads=2, max_position_embeddings=0, **fields)


@given(position=st.integers(0, 1000))
def test_xpos_equals_the_formula(position: int) -> None:
    torch.manual_seed(0)
    query, key = torch.randn(1, 1, 2, 8), torch.randn(1, 1, 2, 8)
    rotation = KosmosPositions(config()).rotation(torch.tensor([[position]]))
    turned_query, turned_key = rotate(query, key, rotation)
    for head in range(2):
        for turned, heads, sign in ((turned_query, query, 1), (turned_key, key, -1)):
            expected = torch.tensor(xpos_by_hand(heads[0, 0, head].tolist(), position, sign))
            torch.testing.assert_close(turned[0, 0, head], expected, rtol=1e-5, atol=1e-5)


@given(rows=st.lists(st.lists(st.integers(0, 40), min_size=5, max_size=5), min_size=2, max_size=6))
@pytest.mark.parametrize("kind", ["xpos", "rope"])
def test_rows_get_what_each_would_alone(kind: str, rows: list[list[int]]) -> None:
    positions = KosmosPositions(config(position_type=kind))
    together, alone = positions.rotation(torch.tensor(rows)), [positions.rotation(torch.tensor([row])) for row in rows]
    assert torch.equal(together, torch.cat(alone))


@given(first=st.integers(0, 2000), distance=st.integers(0, 500), offset=st.integers(0, 2000))
@pytest.mark.parametrize("kind", ["xpos", "rope"])
def test_scores_depend_on_the_distance_only(kind: str, first: int, distance: int, offset: int) -> None:
    torch.manual_seed(1)
    query, key = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    positions = KosmosPositions(KosmosTextConfig(hidden_size=8, num_attention_heads=1, position_type=kind))

    def score(at: int) -> torch.Tensor:
        q, _ = rotate(query, query, positions.rotation(torch.tensor([[at + distance]])))
        _, k = rotate(key, key, positions.rotation(torch.tensor([[at]])))
        return (q * k).sum()

    torch.testing.assert_close(score(first), score(first + offset), rtol=1e-4, atol=1e-5)


def test_bf16_scores_are_within_half_a_percent() -> None:
    torch.manual_seed(2)
    positions = KosmosPositions(KosmosTextConfig(hidden_size=64, num_attention_heads=1))
    rotation = positions.rotation(torch.arange(2048)[None])
    query, key = torch.randn(1, 2048, 1, 64), torch.randn(1, 2048, 1, 64)
    exact_q, exact_k = rotate(query.bfloat16().float(), key.bfloat16().float(), rotation)
    q, k = rotate(query.bfloat16(), key.bfloat16(), rotation)
    exact = (exact_q[:, -1:, 0] @ exact_k[:, :, 0].transpose(1, 2))[0, 0]
    rough = (q[:, -1:, 0].float() @ k[:, :, 0].float().transpose(1, 2))[0, 0]
    assert ((rough - exact).norm() / exact.norm()) < 0.005


def test_sinusoid_equals_fairseq() -> None:
    table = sinusoid(torch.tensor([[0, 5, -1]]), 8)[0]
    for row, p in ((0, 2), (1, 7)):  # fairseq's ids start at pad + 1 = 2
        frequencies = [math.exp(-i * math.log(10000) / 3) for i in range(4)]
        expected = [math.sin(p * f) for f in frequencies] + [math.cos(p * f) for f in frequencies]
        torch.testing.assert_close(table[row], torch.tensor(expected))
    assert not table[2].any()


def test_count_positions_skips_padding() -> None:
    real = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    assert count_positions(real).tolist() == [[-1, -1, 0, 1], [0, 1, 2, -1]]


def test_positions_beyond_a_learned_table_are_refused(build, ids) -> None:
    model = build(position="learned_2d", images=False)
    with pytest.raises(ValueError, match=r"reaches 200, but the learned table ends at 127"):
        model(input_ids=ids, position_ids=torch.full((2, 30), 200))
    with pytest.raises(ValueError, match=r"position_in_span reaches 128"):
        model(input_ids=ids, position_in_span=torch.full((2, 30), 128))


def test_second_position_is_read_by_learned_2d_only(build, ids) -> None:
    model = build(position="learned_2d", images=False)
    second = torch.zeros_like(ids)
    assert torch.equal(model(input_ids=ids, position_in_span=second).logits, model(input_ids=ids).logits)
    assert not torch.allclose(model(input_ids=ids, position_in_span=second + 1).logits, model(input_ids=ids).logits)
    with pytest.raises(ValueError, match="position_type is 'xpos'"):
        build(images=False)(input_ids=ids, position_in_span=second)
