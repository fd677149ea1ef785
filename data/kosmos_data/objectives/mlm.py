"""BERT's masked language modelling: 15 % of the tokens are asked for where they stand (arXiv 1810.04805, section 3.1).

Of the tokens asked for, 80 % are replaced by ``<mask>``, 10 % by a random token and 10 % stay; everything sees
everything. It pretrains the bidirectional text encoder of a language or a domain that has none
(``kosmos encoder``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..example import Example, Flat
from ._arrange import Arrangement, Denoising, maskable

if TYPE_CHECKING:
    from kosmos.processing_kosmos import KosmosProcessor


@dataclass
class MLM(Denoising):
    """The MLM objective.

    Attributes:
        density: share of the text that is asked for.
        masked, random: shares of these that become ``<mask>`` or a random ordinary token; the rest stays.
        loss: ask for any text, or only ``supervised`` segments.
        chunk_tokens: longer documents are cut into windows of about equal length.
    """

    density: float = 0.15
    masked: float = 0.8
    random: float = 0.1
    chunk_tokens: int = 512

    def prepare(self, processor: KosmosProcessor) -> None:
        """Look up ``<mask>`` and the ordinary tokens."""
        super().prepare(processor)
        if not 0 < self.density < 1:
            raise ValueError(f"density={self.density} must lie between 0 and 1")
        if min(self.masked, self.random) < 0 or self.masked + self.random > 1:
            raise ValueError(f"masked={self.masked}, random={self.random}: shares of 1 that must not be negative")
        tokenizer = processor.tokenizer
        self.mask = tokenizer.mask_token_id
        self.ordinary = np.array(sorted({*range(len(tokenizer))} - {*tokenizer.added_tokens_decoder}), dtype=np.int32)

    def transform(self, flat: Flat, rng: np.random.Generator) -> Example | None:
        """Draw the tokens of a window that are asked for, and what the model reads in their place."""
        places = np.flatnonzero(maskable(flat, self.eos))
        if len(places) < 2:
            return None
        chosen = rng.choice(places, max(1, round(self.density * len(places))), replace=False)
        fate = rng.random(len(chosen))
        token = flat.ids.copy()
        token[chosen[fate < self.masked]] = self.mask
        replaced = chosen[(fate >= self.masked) & (fate < self.masked + self.random)]
        token[replaced] = rng.choice(self.ordinary, len(replaced))
        weight = np.zeros(len(token), dtype=np.float32)
        weight[chosen] = 1.0
        read = Arrangement(flat)
        read.copy(0, len(token))
        return replace(read.shifted(len(token), keep_last=True), token=token, label=flat.ids, weight=weight)
