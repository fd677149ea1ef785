"""The screened argmax against the whole product."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kosmos.screening import BOUND, Screen


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


@given(width=st.integers(1, 300), direction=st.sampled_from([-1.0, 1.0]))
def test_the_bound_holds_when_every_rounding_errs_the_same_way(width: int, direction: float) -> None:
    ones = torch.full((1, width), 1 + direction * 0.99 * 2.0**-9)
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
