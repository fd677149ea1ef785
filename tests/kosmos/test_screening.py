"""The screened argmax against the whole product."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from kosmos.screening import BOUND, SMALLEST_MATRIX, Screen, can_screen


@given(seed=st.integers(0, 10**6), rows=st.integers(1, 5), width=st.integers(1, 70), spread=st.floats(0.01, 30))
def test_screened_equals_the_argmax(seed: int, rows: int, width: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = spread * torch.randn(500, width, generator=generator)
    # rivals that bf16 cannot tell apart: fp32 must decide
    weight[250:] = weight[:250] * (1 + 1e-3 * torch.randn(250, 1, generator=generator))
    hidden = torch.randn(rows, width, generator=generator)
    chosen = Screen(weight).choose(hidden)
    logits = hidden.double() @ weight.double().T
    if chosen is not None:
        best = logits.max(-1).values
        picked = logits.gather(1, chosen[:, None])[:, 0]
        assert ((best - picked) <= 1e-6 * (1 + best.abs())).all()


@given(width=st.integers(1, 300), value=st.sampled_from([1 + 0.999 * 2.0**-8, 1 - 0.999 * 2.0**-9]))
@example(width=257, value=1 + 0.999 * 2.0**-8)  # the result is rounded down as well: 0.0116 of at most 0.0127
def test_the_bound_holds_when_every_rounding_errs_the_same_way(width: int, value: float) -> None:
    ones = torch.full((1, width), value)
    rough = Screen(ones)._rough_logits(ones.bfloat16()).double()
    exact = ones.double() @ ones.double().T
    assert (rough - exact).abs() <= BOUND * ones.double().norm() ** 2


@pytest.mark.parametrize("rows", [1, 3])
def test_what_a_screen_leaves_to_the_plain_product(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, 16, generator=generator)
    assert Screen(torch.ones(5000, 16)).choose(hidden) is None  # everything is as good as everything else
    screen = Screen(torch.randn(500, 16, generator=generator))
    assert screen.choose(hidden) is not None
    hidden[-1, 3] = torch.nan
    assert screen.choose(hidden) is None


def test_equal_tokens_are_told_apart_as_by_argmax() -> None:
    weight = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    weight[7] = weight[31] = weight.sum(0)
    assert Screen(weight).choose(weight[31:32]).tolist() == [7]


def test_only_plain_output_matrices_are_screened(monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    head = torch.nn.Linear(64, SMALLEST_MATRIX // 64, bias=False)
    assert can_screen(head)
    hook = head.register_forward_hook(lambda module, inputs, logits: -logits)
    assert not can_screen(head)
    hook.remove()
    head.forward = lambda hidden: hidden
    assert not can_screen(head)
    assert not can_screen(torch.nn.Linear(64, SMALLEST_MATRIX // 64))
    assert not can_screen(torch.nn.Linear(64, 100, bias=False))
    assert not can_screen(torch.nn.Linear(64, SMALLEST_MATRIX // 64, bias=False, dtype=torch.bfloat16))
