"""Fill in the middle: prefix and suffix are read, the middle is written last (arXiv 2207.14255; BigCode's Megatron-LM).

    PSM  <s> <fim_prefix> prefix <fim_suffix> suffix <fim_middle> middle </s>
    SPM  <s> <fim_prefix> <fim_suffix> suffix <fim_middle> prefix middle </s>      ("variant 2")

All causal, loss on all. The two cuts are drawn over the *characters*, so that a model also learns to go on within a
word; each part is tokenised on its own. Images and texts with boxes stay between the texts,
and are never cut.

Differs from the code: nothing is cut off to keep the old length; a document longer than a row is cut by the packer like
any causal text, its parts then lose sight of each other (as at Megatron's window ends).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeGuard

import numpy as np

from .. import errors
from ..document import Document, Segment, Text
from ..errors import BadSample
from ..example import Example, Flat, shifted, text_only
from . import Objective, ids_of
from ._flatten import Loss, flatten, write

if TYPE_CHECKING:
    from kosmos.processing_kosmos import KosmosProcessor

TOKENS = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")


@dataclass
class FIM(Objective):
    """The FIM objective.

    Attributes:
        rate: share of the documents that are rearranged; the others stay as they are.
        spm_rate: share of these in SPM order.
        loss: on any text, or only on ``supervised`` segments.
    """

    rate: float = 0.5
    spm_rate: float = 0.5
    loss: Loss = "all"

    def prepare(self, processor: KosmosProcessor) -> None:
        """Look up ``<fim_prefix> <fim_suffix> <fim_middle>``."""
        super().prepare(processor)
        for name, value in (("rate", self.rate), ("spm_rate", self.spm_rate)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value} must lie between 0 and 1")
        self.tokens = ids_of(TOKENS, processor, "fim")

    def __call__(self, document: Document, seed: int, step: int = 0) -> Example:
        """Draw whether, where and how a document is rearranged."""
        processor, loss = self.processor, self.loss
        rng = np.random.default_rng([seed, *b"fim"])
        texts = [segment for segment in document.segments if is_plain(segment)]
        characters = sum(len(text.text) for text in texts)
        if rng.random() >= self.rate:
            return shifted(flatten(document, processor, loss))
        if characters < 2:
            return replace(shifted(flatten(document, processor, loss)), fallback=1)
        if loss == "supervised" and not any(isinstance(one, Text) and one.supervised for one in document.segments):
            raise BadSample(errors.UNSUPERVISED, document.key)
        parts = divide(document.segments, *sorted(rng.integers(0, characters + 1, 2).tolist()))
        spm = bool(rng.random() < self.spm_rate)
        return rearrange(document.key, parts, processor, self.tokens, spm, loss)


Part = list[tuple[Segment, bool]]
"""Segments, each with whether it goes on within a word."""


def is_plain(segment: Segment) -> TypeGuard[Text]:
    """Whether a segment is text that may be cut; one with boxes stays whole, as an image does."""
    return isinstance(segment, Text) and segment.boxes is None


def divide(segments: Sequence[Segment], first: int, second: int) -> tuple[Part, Part, Part]:
    """Prefix, middle and suffix: cut before the ``first`` and the ``second`` character of the texts."""
    parts: tuple[Part, Part, Part] = ([], [], [])
    at = 0
    for segment in segments:
        if not is_plain(segment):
            parts[(at > first) + (at > second)].append((segment, False))
            continue
        inside = [min(max(cut - at, 0), len(segment.text)) for cut in (first, second)]
        for part, begin, end in zip(parts, [0, *inside], [*inside, len(segment.text)], strict=True):
            if begin < end:
                goes_on = begin > 0 and not segment.text[begin - 1].isspace() and not segment.text[begin].isspace()
                part.append((Text(segment.text[begin:end], segment.supervised), goes_on))
        at += len(segment.text)
    return parts


def rearrange(
    key: str, parts: tuple[Part, Part, Part], processor: KosmosProcessor, tokens: Sequence[int], spm: bool, loss: Loss
) -> Example:
    """Write the three parts in PSM or SPM order."""
    prefix, middle, suffix = parts
    pre, suf, mid = tokens
    order = [(pre, []), (suf, suffix), (mid, prefix + middle)] if spm else [(pre, prefix), (suf, suffix), (mid, middle)]
    written: list[tuple[Segment | list[int], float]] = [([processor.tokenizer.bos_token_id], 0.0)]
    for special, part in order:
        written.append(([special], 1.0))
        for segment, goes_on in part:
            weight = float(isinstance(segment, Text) and (loss == "all" or segment.supervised))
            ids = processor.continue_text(segment.text) if goes_on and isinstance(segment, Text) else segment
            written.append((ids, weight))
    return shifted(write([*written, ([processor.tokenizer.eos_token_id], 1.0)], processor, key))


def fill(flat: Flat, span: tuple[int, int], processor: KosmosProcessor, two_positions: bool) -> Example:
    """A blank: the middle, in PSM order."""
    tokenizer = processor.tokenizer
    pre, suf, mid = ids_of(TOKENS, processor, "fim")
    ids, (start, stop) = flat.ids.tolist(), span
    last = len(ids) - (ids[-1] == tokenizer.eos_token_id)
    read = [tokenizer.bos_token_id, pre, *ids[1:start], suf, *ids[stop:last], mid]
    return shifted(text_only([*read, *ids[start:stop], tokenizer.eos_token_id], len(read)))
