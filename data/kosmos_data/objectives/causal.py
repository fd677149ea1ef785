"""Causal language modelling over text with images: KOSMOS-1's objective (section 2.3), next-token prediction.

Only discrete tokens are predicted; image places are read, never written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..document import Document
from ..example import Example, Flat, judged_from, shifted
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
    """

    loss: Loss = "all"
    predict_image: bool = False

    def __call__(self, document: Document, seed: int, step: int = 0) -> Example:
        """Write the document out; nothing is drawn."""
        return shifted(flatten(document, self.processor, self.loss, self.predict_image))


def fill(flat: Flat, span: tuple[int, int], processor: KosmosProcessor, two_positions: bool) -> Example:
    """A blank: the words in their place, and everything behind them, are judged by how probable they are."""
    return judged_from(span[0], shifted(flat))
