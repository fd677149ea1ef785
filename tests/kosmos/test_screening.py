"""The screened argmax against the whole product."""

from __future__ import annotations

import gc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kosmos.screening import KNOWN, LARGEST, SMALLEST_MATRIX, Screen, can_screen, kernel_is_exact, screen_of

pytestmark = pytest.mark.skipif(not kernel_is_exact(), reason="torch multiplies no 8-bit integers on this CPU")


@given(seed=st.integers(0, 10**6), rows=st.integers(1, 5), width=st.integers(2, 300), spread=st.floats(0.01, 30))
def test_screened_equals_the_argmax(seed: int, rows: int, width: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = spread * torch.randn(500, width, generator=generator)
    weight *= torch.rand(500, 1, generator=generator) ** 3  # rows of unequal length
    # rivals that integers cannot tell apart: fp32 must decide
    weight[250:] = weight[:250] * (1 + 1e-3 * torch.randn(250, 1, generator=generator))
    hidden = torch.randn(rows, width, generator=generator)
    chosen = Screen(weight).choose(weight, hidden)
    assert chosen is not None
    logits = hidden.double() @ weight.double().T
    best = logits.max(-1).values
    picked = logits.gather(1, chosen[:, None])[:, 0]
    assert ((best - picked) <= 1e-6 * (1 + best.abs())).all()


def errors_and_bounds(weight_VD: torch.Tensor, hidden_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How far rough logits are off and how far they may be, (B, V), in units of each row's and each state's scale."""
    screen = Screen(weight_VD)
    rough_BV, bounds = screen.rough(hidden_BD)
    unit_BV = hidden_BD.double().abs().amax(1, keepdim=True) / LARGEST * screen.scale.double()
    exact_BV = hidden_BD.double() @ weight_VD.double().T
    return (rough_BV - exact_BV / unit_BV).abs(), torch.tensor(bounds)[:, None].expand_as(exact_BV)


@given(width=st.integers(2, 300), seed=st.integers(0, 10**6), tail=st.floats(0, 3))
def test_the_bound_holds(width: int, seed: int, tail: float) -> None:
    """For rows and states with and without outliers."""
    generator = torch.Generator().manual_seed(seed)
    weight, hidden = (torch.randn(rows, width, generator=generator) for rows in (50, 3))
    errors, bounds = errors_and_bounds(*(value * value.abs() ** tail for value in (weight, hidden)))
    assert (errors <= bounds).all()


@pytest.mark.parametrize(("weight_step", "state_step"), [(126, 62), (126, 0), (0, 62), (50, 25)])
def test_the_bound_is_met_when_every_rounding_errs_the_same_way(weight_step: int, state_step: int) -> None:
    """All but the first number lie in the middle between two integers: what a sharper bound would get wrong."""
    weight, hidden = (torch.full((1, 257), step + 0.499) for step in (weight_step, state_step))
    weight[0, 0], hidden[0, 0] = 127.0, float(LARGEST)
    errors, bounds = errors_and_bounds(weight, hidden)
    assert (errors <= bounds).all()
    assert (errors >= 0.75 * bounds).all()


@pytest.mark.parametrize("rows", [1, 3])
def test_what_a_screen_leaves_to_the_plain_product(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, 16, generator=generator)
    equal, weight = torch.ones(5000, 16), torch.randn(500, 16, generator=generator)
    assert Screen(equal).choose(equal, hidden) is None
    assert Screen(weight).choose(weight, hidden) is not None
    for wrong in (torch.nan, torch.inf):
        hidden[-1, 3] = wrong
        assert Screen(weight).choose(weight, hidden) is None


def test_forbidden_tokens_are_not_chosen() -> None:
    """The likeliest ones are forbidden, alone and with a rival that integers cannot tell from them."""
    generator = torch.Generator().manual_seed(0)
    weight, hidden = torch.randn(400, 16, generator=generator), torch.randn(5, 16, generator=generator)
    weight[200:] = weight[:200] * (1 + 1e-3 * torch.randn(200, 1, generator=generator))
    logits = hidden @ weight.T
    never = logits.argmax(1).unique()
    expected = logits.index_fill(1, never, -torch.inf).argmax(1)
    assert Screen(weight).choose(weight, hidden, never).tolist() == expected.tolist()
    assert Screen(weight).choose(weight, hidden, torch.arange(400)) is None


def test_equal_tokens_are_told_apart_as_by_argmax() -> None:
    weight = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    weight[7] = weight[31] = weight.sum(0)
    weight[3] = 0
    assert Screen(weight).choose(weight, weight[31:32]).tolist() == [7]


@torch.inference_mode()
def test_a_screen_lives_as_long_as_its_weights_stay_the_same() -> None:
    """Also when they are written to behind autograd's back, or trade places."""
    weight = torch.nn.Parameter(torch.randn(300, 64, generator=torch.Generator().manual_seed(0)))
    known = len(KNOWN)
    first = screen_of(weight)
    assert screen_of(weight) is first
    weight.data[7, 3] += 1e-4
    second = screen_of(weight)
    assert second is not first
    weight.data[:2] = weight.data[:2].flip(0)
    assert screen_of(weight) is not second
    del first, second, weight
    gc.collect()
    assert len(KNOWN) == known


def test_only_plain_output_matrices_are_screened() -> None:
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
