"""Prefix language modelling: the beginning is read in both directions, the rest is written (T5 paper, §3.2.1).

    tokens  <s> x1 … | xp … xn        block 0 before the bar; loss on what follows it

With ``prefix: input`` the bar stands before the first supervised segment: fine-tuning with a bidirectional question.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from ..example import Example, Flat, judged_from
from ._arrange import Arrangement, Denoising

if TYPE_CHECKING:
    from kosmos.processing_kosmos import KosmosProcessor


@dataclass
class PrefixLM(Denoising):
    """The PrefixLM objective.

    Attributes:
        prefix: ``random`` length, uniform as in T5, or the ``input``: all before the first token with loss, which needs
            ``loss: supervised`` to be more than ``<s>``.
        bidirectional: the prefix sees itself both ways; False: it is read causally, which is what an xPos decoder can
            run.
        loss: ``all`` text behind the prefix, or only its ``supervised`` segments.
        chunk_tokens: longer documents are cut into windows of about equal length; not with ``prefix: input``.
    """

    boxes: ClassVar[bool] = True
    prefix: Literal["random", "input"] = "random"
    bidirectional: bool = True
    chunk_tokens: int = 512

    def limit(self) -> int | None:
        """An input stays whole."""
        return None if self.prefix == "input" else self.chunk_tokens

    def transform(self, flat: Flat, rng: np.random.Generator) -> Example | None:
        """Divide a window into what is read and what is written."""
        pivot = draw_pivot(flat, rng) if self.prefix == "random" else int(np.argmax(flat.weight > 0))
        return split_at(flat, pivot, self.bos, self.eos) if pivot else None


def draw_pivot(flat: Flat, rng: np.random.Generator) -> int:
    """A place to divide the window, uniform over those that cut no image and leave a loss behind; 0: there is none."""
    places = _pivots(flat)
    return int(rng.choice(places)) if len(places) else 0


def pivot_at(flat: Flat, share: float) -> int:
    """The place to divide the window that leaves nearest to ``share`` of the tokens with loss behind; 0: none."""
    places = _pivots(flat)
    if len(places) == 0:
        return 0
    with_loss = np.flatnonzero(flat.weight > 0)
    wanted = with_loss[-max(1, round(share * len(with_loss)))]
    return int(places[np.abs(places - wanted).argmin()])


def _pivots(flat: Flat) -> np.ndarray:
    """Places where the window may be divided so that a loss is left behind."""
    last = int(np.flatnonzero(flat.weight > 0).max(initial=0))
    return np.flatnonzero(flat.cuts[1 : last + 1]) + 1


def split_at(flat: Flat, pivot: int, bos: int, eos: int, mode: int | None = None) -> Example:
    """Read tokens before ``pivot`` in both directions, predict the others; ``mode`` is put behind the ``<s>``."""
    arrangement = Arrangement(flat)
    begin = int(flat.ids[0] == bos)  # a window that does not begin its document has no <s>
    arrangement.copy(0, begin, predict=False)
    if mode is not None:
        arrangement.insert(mode)
    arrangement.copy(begin, pivot, predict=False)
    prefix = arrangement.length
    arrangement.copy(pivot, len(flat.ids))
    return arrangement.shifted(bidirectional=prefix, keep_last=bool(flat.ids[-1] != eos))


def fill(flat: Flat, span: tuple[int, int], processor: KosmosProcessor, two_positions: bool) -> Example:
    """A blank: what stands before it is the prefix; the words and everything behind them are judged."""
    tokenizer = processor.tokenizer
    example = split_at(flat, span[0], tokenizer.bos_token_id, tokenizer.eos_token_id)
    return judged_from(span[0], example)
