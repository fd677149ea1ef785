"""GLM's blank infilling: hidden spans are written behind the text, in random order (arXiv 2103.10360, section 2.1).

    text      x1 x2 x3 x4 x5 x6        hidden: x3, x5 x6
    tokens    <s> x1 x2 M x4 M </s> | S x5 x6 | S x3        S = <sop>, M = a mask token; block 0 before the first bar
    labels                            x5 x6 E   x3 E        E = <eop>, loss on these only
    position  0   1  2  3 4  5 6      5 5  5    3 3         a span stands where its mask stands
    in span   0 …                     1 2  3    1 2

Three levels, as in ``blocklm_utils.py`` of THUDM/GLM: ``token`` (15 % in spans of Poisson(3) length, ``<mask>``),
``sentence`` (15 % in whole sentences, ``[sMASK]``) and ``document`` (one long span, ``[gMASK]``). Level ``answer``
hides the supervised segments of a labelled document: fine-tuning by infilling.

The second position needs ``position_type: learned_2d``. With ``two_positions: false`` tokens are simply counted, for
rope, sinusoids and xPos; spans then come in the order of their masks, which nothing else would tell. With
``bidirectional: false`` part A is causal too, which is what an xPos decoder can run.

Differs from the code: the length of a document-level span is drawn for each window instead of for a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..example import Example, Flat
from ..sentences import ending_pieces
from . import ids_of
from ._arrange import Arrangement, Denoising, maskable, runs

if TYPE_CHECKING:
    from kosmos.processing_kosmos import KosmosProcessor

MASKS = {"token": "<mask>", "sentence": "[sMASK]", "document": "[gMASK]", "answer": "<mask>"}
PIECE_BEGIN, PIECE_END = "<sop>", "<eop>"
TOKENS = ("[sMASK]", "[gMASK]", PIECE_BEGIN, PIECE_END)
SENTENCE_ENDS = frozenset(".?!;:。？！；…")
Spans = list[tuple[int, int]]


@dataclass
class GLM(Denoising):
    """The GLM objective.

    Attributes:
        levels: weights of ``token``, ``sentence``, ``document``, ``answer``; default ``{token: 1}`` as in GLM base and
            large. GLM-10B: ``{token: 0.5, sentence: 0.3, document: 0.2}``.
        ratio: share of the text that token and sentence level hide.
        shortest: least share of the text that document level hides (0.25 in GLM-10B).
        suffix: how often a document-level span is the end of the text; otherwise it lies anywhere.
        two_positions: GLM's pair of positions; False counts tokens. Default: as ``bidirectional``, since a causal model
            with xPos has no second position.
        bidirectional: part A sees itself both ways, as in GLM; False: everything is causal.
        loss: hide any text, or only ``supervised`` segments; level ``answer`` needs the latter.
        chunk_tokens: longer documents are cut into windows of about equal length.
    """

    levels: Mapping[str, float] | None = None
    ratio: float = 0.15
    shortest: float = 0.5
    suffix: float = 0.5
    two_positions: bool | None = None
    bidirectional: bool = True
    chunk_tokens: int = 512

    def prepare(self, processor: KosmosProcessor) -> None:
        """Look up ``[sMASK] [gMASK] <sop> <eop>``, and where sentences end."""
        super().prepare(processor)
        levels = dict(self.levels or {"token": 1.0})
        self._check(levels)
        self.names, self.shares = list(levels), np.array(list(levels.values()), dtype=float)
        self.begin, self.end = ids_of((PIECE_BEGIN, PIECE_END), processor, "glm")
        self.masks = dict(zip(self.names, ids_of([MASKS[name] for name in levels], processor, "glm"), strict=True))
        by_sentence = "sentence" in levels
        self.ends = ending_pieces(processor.tokenizer, SENTENCE_ENDS) if by_sentence else np.zeros(0, dtype=bool)

    def _check(self, levels: Mapping[str, float]) -> None:
        if unknown := sorted(levels.keys() - MASKS.keys()):
            raise ValueError(f"levels: no level {unknown[0]!r}; there are {', '.join(MASKS)}")
        if min(levels.values()) < 0 or sum(levels.values()) <= 0:
            raise ValueError(f"levels={levels}: weights must not be negative, nor all 0")
        if "answer" in levels and self.loss != "supervised":
            raise ValueError("level 'answer' hides the supervised segments: it needs loss: supervised")
        for name in ("ratio", "shortest", "suffix"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie between 0 and 1")

    def transform(self, flat: Flat, rng: np.random.Generator) -> Example | None:
        """Draw the level of a window and its spans."""
        level = self.names[rng.choice(len(self.names), p=self.shares / self.shares.sum())]
        free, open_end = maskable(flat, self.eos), False
        if level == "token":
            spans = token_spans(free, self.ratio, rng)
        elif level == "sentence":
            spans = sentence_spans(flat.ids, free, self.ends, self.ratio, rng)
        elif level == "answer":
            spans = runs(free)
        else:
            ends = int(flat.ids[-1] == self.eos)
            spans, open_end = document_span(free[: len(free) - ends], self.shortest, self.suffix, rng)
        if not spans:
            return None
        pairs = self.bidirectional if self.two_positions is None else self.two_positions
        order = rng.permutation(len(spans)) if pairs else np.arange(len(spans))
        places = (self.masks[level], self.begin, self.end, self.eos)
        return infill(flat, spans, order.tolist(), *places, pairs, open_end)


def fill(flat: Flat, span: tuple[int, int], processor: KosmosProcessor, two_positions: bool) -> Example:
    """A blank: one ``<mask>``, and its words behind the text."""
    mask, begin, end = ids_of((MASKS["token"], PIECE_BEGIN, PIECE_END), processor, "glm")
    return infill(flat, [span], [0], mask, begin, end, processor.tokenizer.eos_token_id, two_positions)


def token_spans(free: np.ndarray, ratio: float, rng: np.random.Generator) -> Spans:
    """Spans of Poisson(3) length (1 … 39) with a token between any two, hiding ``ratio`` of the free tokens."""
    places = np.flatnonzero(free)
    wanted = int(ratio * len(places))
    lengths: list[int] = []
    while sum(lengths) < wanted:
        length = int(rng.poisson(3))
        if 1 <= length < 40:
            lengths.append(length)
    while lengths and sum(lengths) + len(lengths) - 1 > len(places):
        lengths.pop()
    if not lengths:
        return []
    # Uniform placement: divide what is not hidden into the gaps, at least one token between two spans.
    slack = len(places) - sum(lengths) - (len(lengths) - 1)
    bars = np.sort(rng.choice(slack + len(lengths), len(lengths), replace=False))
    gaps = np.diff(np.concatenate([[-1], bars])) - 1
    mask = np.zeros(len(free), dtype=bool)
    at = 0
    for gap, length in zip(gaps.tolist(), rng.permutation(lengths).tolist(), strict=True):
        at += gap
        mask[places[at : at + length]] = True
        at += length + 1
    return runs(mask)


def sentence_spans(
    ids: np.ndarray, free: np.ndarray, ends: np.ndarray, ratio: float, rng: np.random.Generator
) -> Spans:
    """Whole sentences in random order until ``ratio`` of the free tokens is hidden; a text of one sentence has none."""
    sentences: Spans = []
    for start, stop in runs(free):
        cuts = (start + 1 + np.flatnonzero(ends[ids[start : stop - 1]])).tolist()
        sentences += list(zip([start, *cuts], [*cuts, stop], strict=True))
    if len(sentences) < 2:
        return []
    wanted, chosen = int(ratio * free.sum()), []
    for index in rng.permutation(len(sentences)).tolist():
        chosen.append(sentences[index])
        wanted -= sentences[index][1] - sentences[index][0]
        if wanted <= 0 or len(chosen) == len(sentences) - 1:
            break
    return sorted(chosen)


def document_span(free: np.ndarray, shortest: float, suffix: float, rng: np.random.Generator) -> tuple[Spans, bool]:
    """One long span in the longest stretch of text, and whether it is the end of ``free``."""
    stretches = runs(free)
    if not stretches:
        return [], False
    start, stop = max(stretches, key=lambda stretch: stretch[1] - stretch[0])
    size = stop - start
    if size < 3:
        return [], False
    least = max(1, int(shortest * size))
    length = int(rng.integers(least, max(least, size - 2) + 1))
    if stop == len(free) and rng.random() < suffix:  # an image behind it must still be read
        return [(stop - length, stop)], True
    begin = start + int(rng.integers(0, size - length + 1))
    return [(begin, begin + length)], False


def infill(
    flat: Flat,
    spans: Spans,
    order: list[int],
    mask: int,
    begin: int,
    end: int,
    eos: int,
    two_positions: bool = True,
    open_end: bool = False,
) -> Example:
    """Part A with a mask for each span, then the spans in ``order``.

    ``open_end``: the one span is the end of the window; nothing stands behind its mask, and in the place of ``<eop>``
    the model must write ``</s>`` if the document ends there, else nothing.
    """
    part_a = Arrangement(flat)
    places, at = [], 0
    for start, stop in spans:
        part_a.copy(at, start, predict=False)
        places.append(part_a.length)
        part_a.insert(mask)
        at = stop
    if not open_end:
        part_a.copy(at, len(flat.ids), predict=False)
    pieces = [(flat.ids[spans[index][0] : spans[index][1]], places[index]) for index in order]
    last = end if not open_end else eos if flat.ids[-1] == eos else -1
    a = part_a.shifted(bidirectional=part_a.length, keep_last=True)
    token = [a.token] + [np.append(begin, ids) for ids, _ in pieces]
    label = [a.label] + [np.append(ids, last) for ids, _ in pieces]
    weight = [a.weight] + [np.append(np.ones(len(ids)), float(last >= 0)) for ids, _ in pieces]
    position = [a.position] + [np.full(len(ids) + 1, place) for ids, place in pieces]
    in_span = [a.position_in_span] + [np.arange(1, len(ids) + 2) for ids, _ in pieces]
    total = sum(len(column) for column in token)
    return Example(
        token=np.concatenate(token).astype(np.int32),
        label=np.concatenate(label).astype(np.int32),
        weight=np.concatenate(weight).astype(np.float32),
        document=np.zeros(total, dtype=np.int32),
        block=np.where(np.arange(total) < len(a), 0, -1).astype(np.int32),
        position=(np.concatenate(position) if two_positions else np.arange(total)).astype(np.int32),
        position_in_span=(np.concatenate(in_span) if two_positions else np.zeros(total)).astype(np.int32),
        placed=a.placed,
        cuts=np.zeros(total, dtype=bool),
    )
