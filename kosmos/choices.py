"""Questions whose answers are all known: cross-entropy over the scores of the candidates (GLM, section 2.3).

    p(y | x) = p(v(y) | c(x)) / Σ p(v(y′) | c(x))          c(x): question with a blank, v(y): wording of answer y

The score of a candidate is the sum of the log-probabilities of its tokens. Where all are one token they are read from
one output; else each stands in a document of its own. In both cases the loss of a question is ``logsumexp`` of the
scores minus that of the right candidate.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .loss import GPU_CHUNK, IGNORE, ChunkedCrossEntropy, TokenLoss, check_labels


class Choices(NamedTuple):
    """The questions of a micro-batch; candidates and questions are numbered through from 0.

    Attributes:
        tokens_K3: (K, 3), of each token that is judged its output, as a flat index into rows laid end to end, its id,
            and its candidate.
        question_C: (C,), of each candidate its question.
        right_Q2: (Q, 2), of each question the output whose weight is its own, as a flat index, and the right candidate.
    """

    tokens_K3: Tensor
    question_C: Tensor
    right_Q2: Tensor


NAMES = ("choices", "choice_questions", "choice_answers")
"""The fields of :class:`Choices` as arguments of ``forward``."""


def taken(given: dict[str, Tensor]) -> Choices | None:
    """Take the choices out of the arguments of ``forward``; None: there are none."""
    found = [given.pop(name, None) for name in NAMES]
    known = [one for one in found if one is not None]
    if known and len(known) < len(found):
        raise ValueError(f"give all of {', '.join(NAMES)}, or none")
    return Choices(*known) if known else None


def total_weight(targets_BT: Tensor, weight_BT: Tensor | None, choices: Choices) -> Tensor:
    """Return the sum of the weights of all outputs with a label and of all questions."""
    weight_BT = torch.ones_like(targets_BT, dtype=torch.float32) if weight_BT is None else weight_BT.float()
    return (weight_BT * (targets_BT != IGNORE)).sum() + weight_BT.flatten()[choices.right_Q2[:, 0]].sum()


def choice_loss(
    hidden_BTD: Tensor,
    weight_VD: Tensor,
    choices: Choices,
    loss_weight_BT: Tensor | None,
    num_items: Tensor | int | float,
) -> TokenLoss:
    """Return the weighted mean of the questions' losses; that of each, detached, stands at its own output.

    The output matrix is multiplied twice, first for the scores and then, with the weight that each token has in the
    gradient, for the gradients: as in :mod:`.loss` no chunk's logits outlive it.

    Args:
        hidden_BTD: the decoder's output.
        weight_VD: output matrix.
        choices: what is judged.
        loss_weight_BT: weight of each question, at its output; 1 by default.
        num_items: what the weighted sum is divided by.

    Raises:
        ValueError: a candidate with a token outside the vocabulary.
    """
    output_K, label_K, candidate_K = choices.tokens_K3.unbind(1)
    place_Q, right_Q = choices.right_Q2.unbind(1)
    check_labels(label_K, weight_VD.shape[0])
    hidden_KD = hidden_BTD.flatten(0, 1).index_select(0, output_K)
    chunk = GPU_CHUNK if hidden_KD.is_cuda else 128
    unit_K = torch.ones(len(label_K), dtype=torch.float32, device=label_K.device)
    _, nll_K = ChunkedCrossEntropy.apply(hidden_KD.detach(), weight_VD.detach(), label_K, unit_K, chunk)
    log_p_C = _normalised(unit_K.new_zeros(len(choices.question_C)).index_add(0, candidate_K, -nll_K), choices)
    loss_Q = -log_p_C[right_Q]
    scale_Q = torch.ones_like(loss_Q) if loss_weight_BT is None else loss_weight_BT.flatten()[place_Q].float()
    scale_Q = scale_Q / num_items
    # d loss / d score is p, minus 1 at the right candidate; a score is minus the sum of its tokens' NLL
    gradient_C = -log_p_C.exp() * scale_Q[choices.question_C]
    gradient_C = gradient_C.index_add(0, right_Q, scale_Q)
    surrogate, _ = ChunkedCrossEntropy.apply(hidden_KD, weight_VD, label_K, gradient_C[candidate_K], chunk)
    loss = (loss_Q * scale_Q).sum() + surrogate - surrogate.detach()
    each_N = torch.zeros(hidden_BTD.shape[:2].numel(), dtype=torch.float32, device=loss_Q.device)
    return TokenLoss(loss, each_N.index_copy(0, place_Q, loss_Q).view(hidden_BTD.shape[:2]))


def _normalised(score_C: Tensor, choices: Choices) -> Tensor:
    """Return the log-probability of each candidate among those of its question."""
    question_C, count = choices.question_C, len(choices.right_Q2)
    largest_Q = score_C.new_full((count,), -torch.inf).scatter_reduce(0, question_C, score_C, "amax")
    above_C = score_C - largest_Q[question_C]
    return above_C - score_C.new_zeros(count).index_add(0, question_C, above_C.exp()).log()[question_C]
