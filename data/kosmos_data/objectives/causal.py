"""Causal language modelling over text with images: KOSMOS-1's objective (section 2.3), next-token prediction.

Only discrete tokens are predicted; image places are read, never written. Where answers alone are learnt, it says where
a dialogue that no row holds may go on in the next one: at a question, but not behind a picture that it may be about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..document import Document
from ..example import Example, Flat, judged_from, shifted
from ..turns import begins_with_question
from . import Objective
from ._flatten import Loss, flatten

if TYPE_CHECKING:
    from kosmos.processing_kosmos import KosmosProcessor


@dataclass
class Causal(Objective):
    """The causal objective.

    Attributes:
        loss: ``all`` trains every text token, ``supervised`` only segments not marked ``"supervised": false``.
        predict_image: also train the prediction of ``<image>``. The interleaved loader of KOSMOS-1 was not released;
            OpenFlamingo does not train it, so the default is off.
        related: also tell which answers say something of the persona, which the classifier of attention routing learns
            (``text_config.routing_layers``); for dialogues, with ``loss: supervised``.
    """

    loss: Loss = "all"
    predict_image: bool = False
    related: bool = False

    def __call__(self, document: Document, seed: int, step: int = 0) -> Example:
        """Write the document out; nothing is drawn."""
        flat = flatten(document, self.processor, self.loss, self.predict_image, related=self.related)
        example = shifted(flat)
        if self.loss == "supervised" and begins_with_question(document):
            example.turns = _turns(flat)[:-1]
        return example


def _turns(flat: Flat) -> np.ndarray:
    """True where a question begins that shows its own picture, or has none before it; bool (N,).

    What is asked has no weight and what is answered has. An answer without its question, or without the picture that
    it is about, would teach to guess.
    """
    begins = np.zeros(len(flat.ids), dtype=bool)
    begins[1:] = (flat.weight[1:] == 0) & (flat.weight[:-1] > 0)
    shown = np.zeros(len(flat.ids), dtype=bool)
    for placed in flat.placed:
        shown[placed.start :] = True
    own = np.append(~flat.cuts[1:], False)  # the next place is inside a picture, or a text span
    return flat.cuts & begins & (own | ~shown)


def fill(flat: Flat, span: tuple[int, int], processor: KosmosProcessor, two_positions: bool) -> Example:
    """A blank: the words in their place, and everything behind them, are judged by how probable they are."""
    return judged_from(span[0], shifted(flat))
