"""BERT's masked language modelling: 15 % of the tokens are asked for where they stand (arXiv 1810.04805, section 3.1).

Of the tokens asked for, 80 % are replaced by ``<mask>``, 10 % by a random token and 10 % stay; everything sees
everything. It pretrains the bidirectional text encoder of a language or a domain that has none
(``kosmos encoder``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..example import Example, Flat
from . import Objective
from ._arrange import Arrangement, denoising, maskable
from ._flatten import Loss

if TYPE_CHECKING:
    from kosmos.processing_kosmos import KosmosProcessor


def build(
    processor: KosmosProcessor,
    density: float = 0.15,
    masked: float = 0.8,
    random: float = 0.1,
    loss: Loss = "all",
    chunk_tokens: int = 512,
) -> Objective:
    """The MLM objective.

    Args:
        processor: tokenizer and image processor of the run.
        density: share of the text that is asked for.
        masked, random: shares of these that become ``<mask>`` or a random ordinary token; the rest stays.
        loss: ask for any text, or only ``supervised`` segments.
        chunk_tokens: longer documents are cut into windows of about equal length.

    Raises:
        ValueError: a share outside 0 … 1, or together above 1.
    """
    if not 0 < density < 1:
        raise ValueError(f"density={density} must lie between 0 and 1")
    if min(masked, random) < 0 or masked + random > 1:
        raise ValueError(f"masked={masked}, random={random}: shares of 1 that must not be negative")
    tokenizer = processor.tokenizer
    eos, mask = tokenizer.eos_token_id, tokenizer.mask_token_id
    ordinary = np.array(sorted(set(range(len(tokenizer))) - set(tokenizer.added_tokens_decoder)), dtype=np.int32)

    def transform(flat: Flat, rng: np.random.Generator) -> Example | None:
        places = np.flatnonzero(maskable(flat, eos))
        if len(places) < 2:
            return None
        chosen = rng.choice(places, max(1, round(density * len(places))), replace=False)
        fate = rng.random(len(chosen))
        token = flat.ids.copy()
        token[chosen[fate < masked]] = mask
        replaced = chosen[(fate >= masked) & (fate < masked + random)]
        token[replaced] = rng.choice(ordinary, len(replaced))
        weight = np.zeros(len(token), dtype=np.float32)
        weight[chosen] = 1.0
        read = Arrangement(flat)
        read.copy(0, len(token))
        return replace(read.shifted(len(token), keep_last=True), token=token, label=flat.ids, weight=weight)

    return denoising(processor, loss, chunk_tokens, "mlm", transform)
