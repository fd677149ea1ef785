"""A prompt that a caller writes as one text, given the same ids as its segments have in training and evaluation.

A tokenizer that was taken over from a language model reads ``<image>An image of`` without the BOS and without the space
that :meth:`KosmosProcessor.encode` puts there: a user's ``generate()`` would be asked something else than training
taught. KOSMOS's own tokenizer writes both, so nothing changes there.
"""

from __future__ import annotations

import re
from typing import Any

from .grounding import TOKENS as GROUNDING_TOKENS
from .modalities import MODALITIES
from .tokenization_kosmos import IMAGE_SLOT

_OURS = {mark for modality in MODALITIES.values() for mark in modality.marks if mark} | set(GROUNDING_TOKENS)


class PlainPrompts:
    """Writes plain prompts as a document is written.

    Args:
        processor: whose ``encode_text`` and ``opening`` say how that is.
    """

    def __init__(self, processor: Any) -> None:
        tokenizer = processor.tokenizer
        known = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
        self._tokens = re.compile("(" + "|".join(map(re.escape, known)) + ")")
        self._opening: str = processor.opening()
        wanted = processor.encode_text("red")
        bare = tokenizer("red", add_special_tokens=False)["input_ids"]
        behind = tokenizer(f"{IMAGE_SLOT}red", add_special_tokens=False)["input_ids"][1:]
        # Some tokenizers put a space at the beginning of a text, but none behind a special token.
        self._first, self._behind = ("" if found == wanted else " " for found in (bare, behind))
        self._strips = processor.encode_text("red ") == wanted
        self.changes = bool(self._opening or self._first or self._behind)

    def write(self, prompt: str) -> str:
        """Return the text of which the tokenizer makes the ids of the prompt's segments.

        A prompt that begins with a token of the language model (its BOS, or the mark of a turn, as chat templates write
        them) is taken as written already.
        """
        if not self.changes:
            return prompt
        pieces = self._tokens.split(prompt)  # text, token, text, token, … text
        if len(pieces) > 1 and not pieces[0].strip() and pieces[1] not in _OURS:
            return prompt
        for at in range(0, len(pieces), 2):
            space = self._behind if at or self._opening else self._first
            pieces[at] = self._spaced(pieces[at], space)
        return self._opening + "".join(pieces)

    def _spaced(self, text: str, space: str) -> str:
        """As ``encode_text``: one space between two segments, and it belongs to the second."""
        if self._strips:
            text = text.rstrip(" ")
        return text if not text or text[0].isspace() else space + text
