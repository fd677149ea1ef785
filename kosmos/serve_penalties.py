"""OpenAI's two penalties of what an answer has said already, which transformers does not have."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.generation import LogitsProcessor


class Penalties(LogitsProcessor):
    """Takes ``count · frequency + (count > 0) · presence`` from the logit of each token that was written.

    What the prompt says does not count (developers.openai.com, "Frequency and presence penalties"). Below 0 they
    are encouragements.

    Args:
        prompt: length of the prompt in tokens.
        frequency: for each time that a token was written.
        presence: once for a token that was written.
    """

    def __init__(self, prompt: int, frequency: float = 0.0, presence: float = 0.0) -> None:
        self.prompt, self.frequency, self.presence = prompt, frequency, presence

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores (B, V) behind prompt and answer so far, (B, T)."""
        written = input_ids[:, self.prompt :]
        count_BV = torch.zeros_like(scores).scatter_add(1, written, torch.ones_like(written, dtype=scores.dtype))
        return scores - self.frequency * count_BV - self.presence * (count_BV > 0)
