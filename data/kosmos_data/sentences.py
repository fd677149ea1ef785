"""Where sentences end, seen from the ids of a text.

A sentence ends with ``</line>``, and with a piece that ends in ``. ! ?`` (closing quotes and brackets may follow) where
the next piece begins a word or is a special token, such as ``<image>``. A mark before ``</line>`` or ``</s>`` leaves
the end to that token. An abbreviation ("Mr. Adams") therefore counts as an end, a decimal point does not.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kosmos.tokenization_kosmos import LINE_END

from .example import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MARKS = frozenset(".?!。？！…")
CLOSERS = "\"'”’»›)]}"
_MOST_CLOSERS = 3  # pieces of closing signs behind one mark


def pieces_of(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Return the pieces by id as SentencePiece spells them, those of byte-level BPE (GPT-2, Llama 3 …) too."""
    pieces = list(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))
    if LINE_END in tokenizer.get_added_vocab():
        return pieces
    # byte-level BPE writes a newline as Ċ and a space as Ġ; SentencePiece with bytes has <0x0A>
    return [LINE_END if piece in ("Ċ", "<0x0A>") else piece.replace("Ġ", "▁") for piece in pieces]


def ending_pieces(tokenizer: PreTrainedTokenizerFast, marks: Set[str], closers: str = "") -> np.ndarray:
    """For every id whether its piece ends with one of ``marks``, ``closers`` left aside, or is a newline; bool (V,)."""
    pieces = pieces_of(tokenizer)
    return np.array([piece.rstrip(closers)[-1:] in marks or piece == LINE_END for piece in pieces])


@dataclass(frozen=True, slots=True)
class Sentences:
    """The rule as tables over a vocabulary; make it with :meth:`of`.

    Args:
        ending: bool (V,), the piece ends with a mark.
        closing: bool (V,), the piece is nothing but closing signs.
        beginning: bool (V,), the piece begins a word, or is a special token other than ``</line>``, ``</s>``
            and ``<unk>``.
        line, eos: ids of ``</line>`` and ``</s>``.
    """

    ending: np.ndarray
    closing: np.ndarray
    beginning: np.ndarray
    line: int
    eos: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> Sentences:
        """The tables of a tokenizer.

        Raises:
            ValueError: it has no token for a newline.
        """
        pieces, eos = pieces_of(tokenizer), tokenizer.eos_token_id
        if LINE_END not in pieces:
            raise ValueError("sentences: this tokenizer has no token for the end of a line")
        line = pieces.index(LINE_END)
        closing = np.array([piece.strip(CLOSERS) == "" for piece in pieces])
        beginning = np.array([piece.startswith("▁") for piece in pieces])
        beginning[list(tokenizer.added_tokens_decoder)] = True
        beginning[[token for token in (line, eos, tokenizer.unk_token_id) if token is not None]] = False
        return cls(ending_pieces(tokenizer, MARKS, CLOSERS), closing, beginning, line, eos)

    def ends(self, example: Example) -> np.ndarray:
        """True at t where token t ends a sentence and the example may be cut there; bool (T,).

        Both edges of the token must be places to cut: ``<s>`` will stand for it at the beginning of the next row.
        """
        token = example.token
        ends = self.ending[token]
        closing = self.closing[token]
        for _ in range(_MOST_CLOSERS):
            ends[1:] |= ends[:-1] & closing[1:]
        ends[:-1] &= self.beginning[token[1:]] | (token[:-1] == self.line)
        ends[:-1] &= example.cuts[:-1] & example.cuts[1:]
        ends[[0, -1]] = False
        return ends
