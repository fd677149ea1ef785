"""The chunked cross-entropy against torch's, value and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kosmos.loss import cross_entropy, shift


@given(st.integers(1, 40), st.integers(1, 16), st.booleans(), st.booleans(), st.integers(0, 1000))
@settings(max_examples=40)
def test_equals_torch(tokens: int, chunk: int, weighted: bool, normalised: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(2, tokens, 8, generator=generator, requires_grad=True)
    matrix = torch.randn(23, 8, generator=generator, requires_grad=True)
    labels = torch.randint(0, 23, (2, tokens), generator=generator)
    labels[torch.rand(2, tokens, generator=generator) < 0.4] = -100
    labels[0, 0] = 3
    weights = torch.rand(2, tokens, generator=generator) + 0.1 if weighted else None
    items = 17 if normalised else None

    token = F.cross_entropy((hidden @ matrix.T).flatten(0, 1), labels.flatten(), reduction="none").view(2, tokens)
    scale = (labels != -100).float() * (1 if weights is None else weights)
    expected = (token * scale).sum() / (items or scale.sum())
    result = cross_entropy(hidden, matrix, labels, weights, items, chunk=chunk)

    torch.testing.assert_close(result.loss, expected)
    torch.testing.assert_close(result.token_loss_BT, token.detach())
    assert not result.token_loss_BT.requires_grad
    for a, b in zip(
        torch.autograd.grad(result.loss * 2, (hidden, matrix)),
        torch.autograd.grad(expected * 2, (hidden, matrix)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_never_holds_all_logits() -> None:
    """The largest tensor made is a chunk's logits; the gradient of the matrix is smaller here."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.numel = max(self.numel, result.numel())
            return result

    hidden, matrix = torch.randn(1, 512, 8, requires_grad=True), torch.randn(1000, 8, requires_grad=True)
    with Largest() as largest:
        cross_entropy(hidden, matrix, torch.randint(0, 1000, (1, 512)), chunk=32).loss.backward()
    assert largest.numel <= 32 * 1000


def test_bf16_loss_is_fp32_and_close() -> None:
    torch.manual_seed(0)
    hidden, matrix = torch.randn(1, 64, 32), torch.randn(500, 32) / 6
    labels = torch.randint(0, 500, (1, 64))
    exact = cross_entropy(hidden, matrix, labels).loss
    rough = cross_entropy(hidden.bfloat16(), matrix.bfloat16(), labels).loss
    assert rough.dtype == torch.float32
    assert abs(rough - exact) < 5e-3


def test_autocast_gives_parameters_fp32_gradients() -> None:
    hidden, matrix = torch.randn(1, 8, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cross_entropy(hidden, matrix, torch.randint(0, 50, (1, 8))).loss.backward()
    assert matrix.grad.dtype == torch.float32
    assert hidden.grad.dtype == torch.float32


def test_shift() -> None:
    assert shift(torch.tensor([[5, 6, 7]])).tolist() == [[6, 7, -100]]


def test_gradients_are_made_once() -> None:
    """They are freed as they are used; a second time is an error, as with torch's own, and never a missing gradient."""
    hidden, matrix = torch.randn(1, 4, 8, requires_grad=True), torch.randn(9, 8, requires_grad=True)
    loss = cross_entropy(hidden, matrix, torch.ones(1, 4, dtype=torch.long)).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute the loss again"):
        loss.backward()


def test_nothing_supervised_is_an_error_unless_normalised() -> None:
    hidden, matrix = torch.randn(1, 4, 8, requires_grad=True), torch.randn(9, 8)
    ignored = torch.full((1, 4), -100)
    with pytest.raises(ValueError, match="every label is -100"):
        cross_entropy(hidden, matrix, ignored)
    loss = cross_entropy(hidden, matrix, ignored, num_items=10).loss
    loss.backward()
    assert loss == 0
    assert not hidden.grad.any()


def test_label_outside_the_vocabulary() -> None:
    with pytest.raises(ValueError, match="label 9 is outside the vocabulary of 9"):
        cross_entropy(torch.randn(1, 2, 8), torch.randn(9, 8), torch.tensor([[1, 9]]))


def test_labels_and_shift_labels_agree(build, ids) -> None:
    model = build(images=False)
    labels = ids.clone()
    labels[:, :5] = -100
    plain = model(input_ids=ids, labels=labels)
    ours = model(input_ids=ids, shift_labels=shift(labels))
    assert ours.logits is None
    assert plain.logits is not None
    torch.testing.assert_close(plain.loss, ours.loss)
    expected = F.cross_entropy(plain.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(plain.loss, expected)
    assert ours.token_loss.shape == ids.shape
