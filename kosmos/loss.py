"""Cross-entropy over the vocabulary without the matrix of logits.

At KOSMOS-1's size the fp32 logits of one row of 2,048 tokens take 512 MiB. Here hidden states meet the output matrix
a chunk of tokens at a time and both gradients are made in the forward pass, so that no chunk's logits outlive it.
Ignored tokens (image slots, prompts, padding) are never multiplied at all. Loss and accumulated gradient are fp32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .compiled import compiled

IGNORE = -100
GPU_CHUNK = 4096


class TokenLoss(NamedTuple):
    """``loss``: scalar fp32; ``token_loss_BT``: detached NLL of each token in nats, fp32, 0 where ignored."""

    loss: Tensor
    token_loss_BT: Tensor

    def plus(self, more: Tensor | None) -> TokenLoss:
        """Add another loss; where either is None, nothing changes."""
        return self if more is None or self.loss is None else self._replace(loss=self.loss + more)


def cross_entropy(
    hidden_BTD: Tensor,
    weight_VD: Tensor,
    shift_labels_BT: Tensor,
    loss_weight_BT: Tensor | None = None,
    num_items: Tensor | int | float | None = None,
    chunk: int | None = None,
    supervised_N: Tensor | None = None,
) -> TokenLoss:
    """Return the weighted mean NLL of ``softmax(hidden · weightᵀ)`` and each token's NLL.

    Args:
        hidden_BTD: the decoder's output.
        weight_VD: output matrix.
        shift_labels_BT: what each output must predict; -100 is ignored.
        loss_weight_BT: weight of each token (1 by default).
        num_items: what the weighted sum is divided by; the sum of the weights by default.
        chunk: tokens multiplied at a time; by default 128 on a CPU and 4,096 on a GPU.
        supervised_N: flat indices of the tokens whose label is not -100, where they are known, and the labels checked
            (rows.py); found here otherwise.

    Raises:
        ValueError: a label outside the vocabulary; or no supervised token and no ``num_items``; or shapes that differ.
    """
    for name, tensor in (("labels", shift_labels_BT), ("loss_weight", loss_weight_BT)):
        if tensor is not None and tensor.shape != hidden_BTD.shape[:2]:
            raise ValueError(f"{name} have shape {tuple(tensor.shape)}, the inputs {tuple(hidden_BTD.shape[:2])}")
    place = supervised(shift_labels_BT, weight_VD.shape[0]) if supervised_N is None else supervised_N
    labels_N = shift_labels_BT.reshape(-1)[place]
    hidden_ND = hidden_BTD.flatten(0, 1).index_select(0, place)
    if loss_weight_BT is None:
        weight_N = torch.ones(len(place), dtype=torch.float32, device=place.device)
    else:
        weight_N = loss_weight_BT.reshape(-1)[place].float()
    if num_items is None:
        num_items = weight_N.sum()
        if not torch.compiler.is_compiling() and float(num_items) == 0:
            raise ValueError("no supervised token in this batch: every label is -100 or has weight 0")
    chunk = chunk or (GPU_CHUNK if hidden_ND.is_cuda else 128)
    loss, nll_N = ChunkedCrossEntropy.apply(hidden_ND, weight_VD, labels_N, weight_N / num_items, chunk)
    token_loss = torch.zeros(shift_labels_BT.numel(), dtype=torch.float32, device=place.device)
    return TokenLoss(loss, token_loss.index_copy(0, place, nll_N).view_as(shift_labels_BT))


def shift(labels_BT: Tensor) -> Tensor:
    """Turn transformers' unshifted labels into what each output must predict; the last one predicts nothing."""
    return F.pad(labels_BT, (0, 1), value=IGNORE)[:, 1:]


def supervised(shift_labels_BT: Tensor, vocabulary: int) -> Tensor:
    """Return the flat indices of the tokens that have a label, (N,); on a GPU this waits for it.

    Raises:
        ValueError: a label outside the vocabulary.
    """
    labels = shift_labels_BT.reshape(-1)
    place = (labels != IGNORE).nonzero().squeeze(1)
    check_labels(labels[place], vocabulary)
    return place


def check_labels(labels_N: Tensor, vocabulary: int) -> None:
    """Raise ValueError for a label outside the vocabulary (on a GPU the kernel would only abort)."""
    if labels_N.numel() and not torch.compiler.is_compiling():
        low, high = (int(bound) for bound in labels_N.aminmax())
        if low < 0 or high >= vocabulary:
            wrong = low if low < 0 else high
            raise ValueError(f"label {wrong} is outside the vocabulary of {vocabulary}; ignored tokens carry {IGNORE}")


class ChunkedCrossEntropy(torch.autograd.Function):
    """Σ weight · NLL with both gradients computed chunk by chunk in the forward pass.

    On a CPU every pass over the logits costs, hence as few as possible: token weights scale the
    rows of the (N, D) factors instead.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, weight_N: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        """Return (loss, NLL of each token)."""
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        device = hidden_ND.device.type
        compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_ND.dtype
        matrix_VD = weight_VD.to(compute)
        grad_hidden = torch.empty_like(hidden_ND) if need_hidden else None
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if need_weight else None
        nll_N = torch.empty(len(labels_N), dtype=torch.float32, device=hidden_ND.device)
        buffer = torch.empty(min(chunk, len(labels_N)), len(matrix_VD), dtype=torch.float32, device=hidden_ND.device)
        half_on_gpu = hidden_ND.is_cuda and compute != torch.float32
        passes = _passes_on_gpu if half_on_gpu else _passes
        with torch.autocast(device, enabled=False):
            for start in range(0, len(labels_N), chunk):
                part = slice(start, start + chunk)
                hidden, labels, weight = hidden_ND[part].to(compute), labels_N[part, None], weight_N[part, None]
                nll_N[part], total, gradient = passes(hidden, matrix_VD, labels, buffer[: len(hidden)])
                weight = weight / total
                if grad_hidden is not None:
                    grad_hidden[part] = (gradient @ matrix_VD).mul_(weight)
                hidden = (hidden * weight).to(compute)
                if grad_weight is None:
                    pass
                elif half_on_gpu:
                    torch.addmm(grad_weight, gradient.T, hidden, out_dtype=torch.float32, out=grad_weight)
                elif compute == torch.float32:
                    grad_weight.addmm_(gradient.T, hidden)
                else:
                    grad_weight.add_(gradient.T @ hidden)
                del gradient  # before the next chunk makes another: half a gigabyte at KOSMOS-1's size
        ctx.grad_hidden, ctx.grad_weight, ctx.weight_dtype = grad_hidden, grad_weight, weight_VD.dtype
        ctx.mark_non_differentiable(nll_N)
        return (nll_N * weight_N).sum(), nll_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Scale the gradients made in the forward pass."""
        scale, needed = grads[0], ctx.needs_input_grad[:2]
        if [ctx.grad_hidden is None, ctx.grad_weight is None] != [not need for need in needed]:
            raise RuntimeError("the loss was differentiated before, and its gradients freed; compute the loss again")
        hidden = None if ctx.grad_hidden is None else ctx.grad_hidden * scale.to(ctx.grad_hidden.dtype)
        weight = None if ctx.grad_weight is None else (ctx.grad_weight.mul_(scale)).to(ctx.weight_dtype)
        ctx.grad_hidden = ctx.grad_weight = None
        return hidden, weight, None, None, None


Passes = tuple[Tensor, Tensor, Tensor]
"""NLL (N,), each row's sum of exponentials (N, 1), and (softmax - one-hot) times that sum, (N, V)."""


def _passes(hidden_ND: Tensor, matrix_VD: Tensor, labels_N1: Tensor, buffer_NV: Tensor) -> Passes:
    """Multiply, and turn the logits into gradients in place, in as few passes as single kernels allow."""
    if hidden_ND.dtype == torch.float32:
        torch.mm(hidden_ND, matrix_VD.T, out=buffer_NV)
    else:
        buffer_NV.copy_(hidden_ND @ matrix_VD.T)
    label_logit, largest = buffer_NV.gather(1, labels_N1), buffer_NV.amax(-1, keepdim=True)
    total = buffer_NV.sub_(largest).exp_().sum(-1, keepdim=True)
    nll_N = (largest + total.log() - label_logit).squeeze(1)
    # softmax minus one-hot, times the token's weight, is (exponentials - total · one-hot) · weight / total
    return nll_N, total, buffer_NV.scatter_add_(1, labels_N1, -total).to(hidden_ND.dtype)


def _passes_on_gpu(hidden_ND: Tensor, matrix_VD: Tensor, labels_N1: Tensor, buffer_NV: Tensor) -> Passes:
    """Multiply into fp32, so that no logit is rounded, and read the logits three times in all."""
    torch.mm(hidden_ND, matrix_VD.T, out_dtype=torch.float32, out=buffer_NV)
    return compiled(_softmax_gradient, dynamic=True)(buffer_NV, labels_N1, hidden_ND.dtype)


def _softmax_gradient(logits_NV: Tensor, labels_N1: Tensor, dtype: torch.dtype) -> Passes:
    label_logit, largest = logits_NV.gather(1, labels_N1), logits_NV.amax(-1, keepdim=True)
    exponentials = (logits_NV - largest).exp()
    total = exponentials.sum(-1, keepdim=True)
    at_label = torch.arange(logits_NV.shape[1], device=logits_NV.device) == labels_N1
    gradient = torch.where(at_label, exponentials - total, exponentials).to(dtype)
    return (largest + total.log() - label_logit).squeeze(1), total, gradient
