"""Causal language modelling over text with images: KOSMOS-1's objective (section 2.3), next-token prediction.

Only discrete tokens are predicted; image places are read, never written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..document import Document
from ..example import Example, Flat, judged_from, shifted
from . import Objective
from ._flatten import Loss, flatten

if TYPE_CHECKING:
    from kosmos.processing_kosmos import KosmosProcessor


def build(processor: KosmosProcessor, loss: Loss = "all", predict_image: bool = False) -> Objective:
    """The causal objective.

    Args:
        processor: tokenizer and image processor of the run.
        loss: ``all`` trains every text token, ``supervised`` only segments not marked ``"supervised": false``.
        predict_image: also train the prediction of ``<image>``. The interleaved loader of KOSMOS-1 was not released;
            OpenFlamingo does not train it, so the default is off.

    Raises:
        ValueError: an unknown ``loss``.
    """
    if loss not in ("all", "supervised"):
        raise ValueError(f"loss={loss!r}: choose 'all' or 'supervised'")

    def causal(document: Document, seed: int) -> Example:
        return shifted(flatten(document, processor, loss, predict_image))

    return causal


def fill(flat: Flat, span: tuple[int, int], processor: KosmosProcessor, two_positions: bool) -> Example:
    """A blank: the words in their place, and everything behind them, are judged by how probable they are."""
    return judged_from(span[0], shifted(flat))
