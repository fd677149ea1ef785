"""MetaLM's semi-causal language modelling: an encoder reads sampled spans both ways (arXiv 2206.06336, §2.3).

    text    x1 x2 x3 x4 x5 x6        span: x3 x4
    tokens  <s> x1 x2 [h3] [h4] x5 x6        [h] = a slot for the encoder's state, all causal
    labels  x1  x2 x3  –   x5  x6 </s>

Equation (1): trained is every token outside the spans, the *first* token of each span (predicted from what stands
before it) and the token behind a span (predicted at its last slot); not trained are a span's other tokens. The paper
prints j < i in the condition, which contradicts its own text; it is read as j ≤ i.

The encoder reads ``<s>`` and the span's tokens. With its own tokenizer (``processor.span_tokenizer``) the span's text
is tokenised again, so that it may take another number of slots than it has tokens. A span connector with queries makes
``processor.num_span_tokens`` slots of any span.

Differs from the paper, whose spans of 64 to 128 tokens make a quarter of each sequence of 2,048: here a quarter of
every document, in expectation, so that packed rows hold a quarter of spans whatever they are packed of. A text shorter
than two longest spans gets shorter ones in proportion, since spans cross no border of a document or an image. Nothing
closes a span in the encoder: a BERT reads ``[CLS]`` and the tokens, without the ``[SEP]`` of its pretraining.

Differs from the released code: its loss mask (``lm_loader.py``, ``mask[1:]``) is off by one and trains a target that
the encoder has just read in every span; ours is the equation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from kosmos.modalities import SPAN
from kosmos.segments import Encoded

from ..document import Document, Span, Text
from ..example import Example, Flat, shifted
from . import causal
from ._arrange import Arrangement, Denoising, maskable, runs
from ._flatten import flatten

if TYPE_CHECKING:
    from kosmos.processing_kosmos import KosmosProcessor

LEAST_AFTER_BORDER = 19
LEAST_TEXT = 2  # tokens of a stretch: a span is at most half of it
Spans = list[tuple[int, int]]


@dataclass
class SemiCausal(Denoising):
    """The semi-causal objective.

    Attributes:
        sampler: ``paper``: lengths uniform in ``min_length`` … ``max_length``, as many as cover ``share`` of the text
            in expectation; ``grid``: the released algorithm on a grid of ``max_length`` tokens; ``prefix``: one span of
            random length at the beginning, behind an image that stands there, loss on the rest (section 4,
            vision-language, where one encoder reads image and text together; here each has its own);
            ``input``: no sampling, every segment marked ``"supervised": false`` is a span and the others are
            written, with ``</s>`` after each (section 3.4: fine-tuning, instructions, demonstrations, dialogue).
        share: of the text, in tokens of the decoder, that spans cover; ``grid`` goes on until it is covered.
        min_length, max_length: of a span in tokens; ``grid`` and ``prefix`` have only the upper bound. A stretch of
            text shorter than twice ``max_length`` gets spans of up to half of it, both bounds lowered alike.
        loss: on any text, or only on ``supervised`` segments; ``input`` always trains those only.
    """

    sampler: Literal["paper", "grid", "prefix", "input"] = "paper"
    share: float = 0.25
    min_length: int = 64
    max_length: int = 128

    def prepare(self, processor: KosmosProcessor) -> None:
        """Check that the values fit together."""
        super().prepare(processor)
        least, most = self.min_length, self.max_length
        if not 1 <= (least if self.sampler == "paper" else 1) <= most:
            raise ValueError(f"min_length={least}, max_length={most}: must be 1 ≤ min_length ≤ max_length")
        if not 0 < self.share < 1:
            raise ValueError(f"share={self.share} must lie between 0 and 1")

    def __call__(self, document: Document, seed: int, step: int = 0) -> Example:
        """Sample spans; of ``input``, what is given goes through the encoder, what is asked for is written."""
        if self.sampler != "input":
            return super().__call__(document, seed, step)
        segments = [
            Span(segment.text) if isinstance(segment, Text) and not segment.supervised else segment
            for segment in document.segments
        ]
        read = Document(document.key, segments, document.meta)
        return shifted(flatten(read, self.processor, loss="supervised", end_turns=True))

    def transform(self, flat: Flat, rng: np.random.Generator) -> Example | None:
        """Draw the spans of a document."""
        free = maskable(flat, self.eos)
        if self.sampler == "paper":
            if all(stop - start < LEAST_TEXT for start, stop in runs(free)):
                return None
            spans = paper_spans(free, self.share, self.min_length, self.max_length, rng)
        elif self.sampler == "grid":
            spans = grid_spans(free, self.share, self.max_length, rng)
        else:
            spans = prefix_span(free, self.max_length, rng)
        example = replace_spans(flat, spans, self.processor, first_tokens=self.sampler != "prefix")
        drew_none = self.sampler == "paper" and not spans  # how a short text keeps to the share, and no fallback
        return example if drew_none or len(example.placed) > len(flat.placed) else None


def paper_spans(free: np.ndarray, share: float, shortest: int, longest: int, rng: np.random.Generator) -> Spans:
    """Spans of the text that is ``free``, of which they cover ``share`` in expectation, stretch by stretch.

    The number of spans of a stretch is its part of the text over a span's mean length, rounded up or down at random so
    that the mean is exact: no document is too short to carry its share, and every draw is of this document alone.
    Lengths are uniform, and so is the place of the spans among all that keep their order. The expectation is exact as
    long as a stretch holds all that may be drawn; 25 % of 64 to 128 tokens always does, and from shares of about 70 %
    on some are left out.
    """
    chosen: Spans = []
    for start, stop in runs(free):
        size = stop - start
        upper = min(longest, size // 2)
        lower = max(1, shortest * upper // longest)
        count = int(share * size / ((lower + upper) / 2) + rng.random()) if size >= LEAST_TEXT else 0
        lengths = rng.integers(lower, upper + 1, count).tolist() if count else []
        while sum(lengths) > size:
            lengths.pop()
        slack = size - sum(lengths)
        # Uniform placement: among slack + spans places in a line, those of the spans; between two lie gaps of slack.
        bars = sorted(rng.choice(slack + len(lengths), len(lengths), replace=False).tolist())
        at, before = start, -1
        for bar, length in zip(bars, lengths, strict=True):
            at += bar - before - 1
            chosen.append((at, at + length))
            at, before = at + length, bar
    return chosen


def grid_spans(free: np.ndarray, share: float, cell: int, rng: np.random.Generator) -> Spans:
    """The released algorithm (KOSMOS-2 ``lm_loader.py``, ``_mlm_cut``): spans with one edge on a grid.

    What is not free (an image's tokens, text without loss) counts as the border of a document there: a cell with one
    such token gives the rest of the cell behind it, a cell with more gives nothing.
    """
    starts = np.arange(1, max(1, len(free) - 1.5 * cell), cell, dtype=int)
    chosen: Spans = []
    covered = 0
    for start in rng.permutation(starts).tolist():
        if covered > share * (len(free) - 1):
            break
        borders = start + np.flatnonzero(~free[start : start + cell])
        if len(borders) == 0:
            cut = int(rng.integers(0, cell))
            span = (start, start + cut + 1) if cut >= cell / 2 else (start + cut, start + cell)
        elif len(borders) == 1 and start + cell - (int(borders[0]) + 1) >= LEAST_AFTER_BORDER:
            span = (int(borders[0]) + 1, start + cell)
        else:
            continue
        chosen.append(span)
        covered += span[1] - span[0]
    return sorted(chosen)


def prefix_span(free: np.ndarray, longest: int, rng: np.random.Generator) -> Spans:
    """The first 1 … ``longest`` tokens of the first stretch of text; at least one token is left to write."""
    stretches = runs(free)
    if not stretches:
        return []
    start, stop = stretches[0]
    most = min(longest, stop - start - (len(stretches) == 1))
    return [(start, start + int(rng.integers(1, most + 1)))] if most >= 1 else []


def replace_spans(flat: Flat, spans: Spans, processor: KosmosProcessor, first_tokens: bool = True) -> Example:
    """Put slots in the place of the spans.

    Args:
        first_tokens: predict the first token of each span and all text between them, eq. (1); otherwise there is one
            span, and nothing is predicted before its end.
    """
    arrangement = Arrangement(flat)
    at = 0
    for start, stop in spans:
        payload = encoder_ids(flat.ids[start:stop], processor)
        limit = processor.max_span_length
        while limit is not None and len(payload) > limit:
            stop = start + (stop - start) // 2
            payload = encoder_ids(flat.ids[start:stop], processor)
        if len(payload) < 2:  # nothing but newlines, which the encoder's tokenizer does not know
            continue
        arrangement.copy(at, start, predict=first_tokens)
        weight = float(flat.weight[start]) if first_tokens else 0.0
        processor.place(SPAN, payload, encoded := Encoded())
        arrangement.insert_encoded(encoded, int(flat.ids[start]), weight)
        at = stop
    arrangement.copy(at, len(flat.ids))
    return arrangement.shifted(may_cut=True)


def encoder_ids(ids: np.ndarray, processor: KosmosProcessor) -> np.ndarray:
    """What the encoder reads of a span: its begin token and the same tokens, or those of its own tokenizer."""
    if processor.span_tokenizer is None:
        return np.concatenate([[processor.tokenizer.bos_token_id], ids]).astype(np.int32)
    return np.array(processor.encode_span(processor.tokenizer.decode(ids.tolist())), dtype=np.int32)


fill = causal.fill
"""A blank is asked for as of a causal model: the decoder has stayed one."""
