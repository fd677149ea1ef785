"""UL2: a mixture of denoisers, each announced by a mode token (arXiv 2205.05131, table 1; UL2R, arXiv 2210.11399).

R denoisers hide short stretches sparingly, X denoisers long ones or many (``[NLG]``), S is a prefix language model. The
mode token stands behind ``<s>``: ``[NLU]`` R, ``[NLG]`` X, ``[S2S]`` S, as in the released checkpoints.

An S denoiser asks for the last quarter of a text, as table 1 has it (r = 0.25, one stretch of a quarter of the length);
``s_targets: null`` draws the end of its prefix uniformly, as Levanter does, which asks for half of the text on average.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..example import Example, Flat
from . import SENTINELS, ids_of, span_corruption
from ._arrange import Denoising, maskable
from .prefix_lm import draw_pivot, pivot_at, split_at
from .span_corruption import check_noise, corrupt, draw_noise

if TYPE_CHECKING:
    from kosmos.processing_kosmos import KosmosProcessor

MODES = {"R": "[NLU]", "X": "[NLG]", "S": "[S2S]"}
TOKENS = (*SENTINELS, *MODES.values())


@dataclass(frozen=True)
class Denoiser:
    """One line of the table; an S denoiser has neither density nor length."""

    mode: Literal["R", "S", "X"]
    share: float
    density: float = 0.0
    mean_length: float = 0.0


VARIANTS = {
    "ul2": (
        Denoiser("R", 1, 0.15, 3),
        Denoiser("R", 1, 0.15, 8),
        Denoiser("X", 1, 0.5, 3),
        Denoiser("X", 1, 0.5, 8),
        Denoiser("X", 1, 0.15, 64),
        Denoiser("X", 1, 0.5, 64),
        Denoiser("S", 1),
    ),
    "ul2r": (
        Denoiser("R", 1, 0.15, 3),
        Denoiser("X", 0.5, 0.15, 32),
        Denoiser("X", 0.5, 0.5, 3),
        Denoiser("S", 2),
    ),
}


@dataclass
class UL2(Denoising):
    """The UL2 mixture.

    Attributes:
        variant: ``ul2`` draws the seven denoisers evenly, ``ul2r`` half S, a quarter R, a quarter X.
        mode_tokens: announce the denoiser.
        s_targets: share of the text, its end, that an S denoiser asks for; None: the prefix ends anywhere.
        bidirectional: what is read sees itself both ways, as in UL2's encoder; False: everything is causal, which is
            what an xPos decoder can run.
        loss: hide any text, or only ``supervised`` segments.
        chunk_tokens: longer documents are cut into windows of about equal length, each with its own denoiser.
    """

    variant: Literal["ul2", "ul2r"] = "ul2"
    mode_tokens: bool = True
    s_targets: float | None = 0.25
    bidirectional: bool = True
    chunk_tokens: int = 512

    def prepare(self, processor: KosmosProcessor) -> None:
        """Look up sentinels and mode tokens."""
        super().prepare(processor)
        if self.s_targets is not None and not 0 < self.s_targets < 1:
            raise ValueError(f"s_targets={self.s_targets:g} must lie between 0 and 1")
        for denoiser in VARIANTS[self.variant]:
            if denoiser.mode != "S":
                check_noise(denoiser.density, denoiser.mean_length, self.chunk_tokens)
        *self.sentinels, nlu, nlg, s2s = ids_of(TOKENS, processor, "ul2")
        self.modes = {"R": nlu, "X": nlg, "S": s2s} if self.mode_tokens else {"R": None, "X": None, "S": None}
        shares = np.array([denoiser.share for denoiser in VARIANTS[self.variant]])
        self.shares = shares / shares.sum()

    def transform(self, flat: Flat, rng: np.random.Generator) -> Example | None:
        """Draw the denoiser of a window."""
        denoiser = VARIANTS[self.variant][rng.choice(len(self.shares), p=self.shares)]
        mode = self.modes[denoiser.mode]
        if denoiser.mode == "S":
            pivot = draw_pivot(flat, rng) if self.s_targets is None else pivot_at(flat, self.s_targets)
            return split_at(flat, pivot, self.bos, self.eos, mode) if pivot else None
        mask = draw_noise(maskable(flat, self.eos), denoiser.density, denoiser.mean_length, rng)
        return None if mask is None else corrupt(flat, mask, self.sentinels, self.bos, self.eos, mode)


def fill(flat: Flat, span: tuple[int, int], processor: KosmosProcessor, two_positions: bool) -> Example:
    """A blank: span corruption announced as R, which hides short stretches."""
    return span_corruption.fill(flat, span, processor, two_positions, MODES["R"])
