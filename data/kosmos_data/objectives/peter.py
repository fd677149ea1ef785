"""PETER: an explanation of why somebody likes something, from ids alone (Li et al. 2021, arXiv 2105.11601).

::

    reads     <s>  user  item  Explanation:  the  rooms  are  clean
    block           0     0
    predicts  ·    4.0   the,  the           rooms are   clean </s>       3 losses: rating, context, explanation
                         rooms,
                         are, clean

User and item see each other. The user's place predicts the rating (squared error), the item's place the words of the
explanation in no order, so that the ids have to mean something; then the explanation is written word by word. Features
(PETER+) are a text before the explanation, without loss.

The three losses are means over reviews, that of a review a mean over its words, as in the paper's formulas (the
released code takes means over the words of a batch). So a review weighs in a mixture as one token of other sources.

Differs from the paper: a document begins with ``<s>``, and between the ids and the explanation stands what the document
has there (``kosmos data import reviews`` writes a short text) in place of the paper's ``<bos>``; without a text there,
the item's place also predicts the first word. Positions, norm and depth are those of the decoder at hand. The words of
the context loss are all tokens of the explanation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from kosmos.entities import Targets
from kosmos.segments import Placed

from .. import errors
from ..document import Document, Entity
from ..errors import BadSample
from ..example import Example, Flat, shifted
from ..reviews import is_features
from . import Objective
from ._flatten import flatten

if TYPE_CHECKING:
    from kosmos.processing_kosmos import KosmosProcessor


@dataclass
class Peter(Objective):
    """The objective of PETER.

    Attributes:
        user, item: kinds of the two entities; further ones are read like the item's.
        explanation, context, rating: weights of the three losses. The sum is divided by that of the explanation, so
            that a learning rate means what it means elsewhere; the others may be 0.
        bidirectional: the entities see each other; False: the item sees the user only, which an xPos decoder can run.
        features: read the features that a review names before its explanation (PETER+); False: leave them out.
    """

    user: str = "user"
    item: str = "item"
    explanation: float = 1.0
    context: float = 1.0
    rating: float = 0.1
    bidirectional: bool = True
    features: bool = False

    def prepare(self, processor: KosmosProcessor) -> None:
        """Check the weights, and that the processor knows both kinds."""
        super().prepare(processor)
        if not self.explanation > 0 or min(self.context, self.rating) < 0:
            raise ValueError(
                f"explanation={self.explanation}, context={self.context}, rating={self.rating}: the first weight must "
                "be above 0, the others at least 0"
            )
        known = processor.entity_kinds() or {}
        if missing := [kind for kind in (self.user, self.item) if kind not in known]:
            raise ValueError(
                f"objective 'peter': the processor knows no entities of the kind {missing[0]!r}, but "
                f"{', '.join(known) or 'none'}; make it of a corpus of reviews (kosmos tokenizer shards=[…])"
            )

    def __call__(self, document: Document, seed: int, step: int = 0) -> Example:
        """Write the document out, and put the targets of its entities at their places; nothing is drawn."""
        entities = [segment for segment in document.segments if isinstance(segment, Entity)]
        kinds = [next(iter(entity.ids)) for entity in entities]
        if kinds.count(self.user) != 1 or kinds.count(self.item) != 1:
            raise BadSample(errors.FIELDS, f"{document.key}: a review has one {self.user} and one {self.item}")
        if not self.features:
            kept = [segment for segment in document.segments if not is_features(segment)]
            document = replace(document, segments=kept)
        flat = flatten(document, self.processor, loss="supervised")
        words = flat.ids[(flat.weight > 0) & (flat.ids != self.eos)]
        flat.weight /= flat.weight.sum()
        example = shifted(replace(flat, placed=self._with_targets(flat, entities, kinds, words)))
        if self.bidirectional:
            example.block[:] = self._block(example)
        example.cuts = np.zeros(len(example), dtype=bool)
        return example

    def _with_targets(self, flat: Flat, entities: list[Entity], kinds: list[str], words: np.ndarray) -> list[Placed]:
        """What encoders read, the entities of user and item with what is learned at their places."""
        rest, placed = iter(zip(entities, kinds, strict=True)), []
        for one in flat.placed:
            if one.modality == "entity":
                entity, kind = next(rest)
                targets = Targets(int(one.payload))
                if kind == self.user and entity.rating is not None and self.rating:
                    weight = self.rating / self.explanation
                    targets = replace(targets, rating=float(entity.rating), rating_weight=weight)
                if kind == self.item and self.context and len(words):
                    weight = self.context / self.explanation / len(words)
                    targets = replace(targets, words=tuple(words.tolist()), word_weight=weight)
                one = replace(one, payload=targets)
            placed.append(one)
        return placed

    def _block(self, example: Example) -> np.ndarray:
        """Block 0 over the stretch of the entities where they stand side by side; -1 elsewhere."""
        places = [one.start for one in example.placed if one.modality == "entity"]
        block = np.full(len(example), -1, dtype=np.int32)
        if places[-1] - places[0] == len(places) - 1:
            block[places] = 0
        return block
