"""Looking up the special tokens of an objective; an objective names those it needs in its ``TOKENS``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kosmos.processing_kosmos import KosmosProcessor

SENTINELS = tuple(f"<extra_id_{number}>" for number in range(100))
"""T5's names; one stands for each hidden stretch of a text."""


def ids_of(tokens: Sequence[str], processor: KosmosProcessor, objective: str) -> list[int]:
    """Ids of special tokens.

    Raises:
        ValueError: the tokenizer does not have them all; names the first that is missing, and the way to get it.
    """
    known = processor.tokenizer.get_added_vocab()
    missing = [token for token in tokens if token not in known]
    if missing:
        raise ValueError(
            f"objective {objective!r} needs {len(missing)} special tokens that the tokenizer lacks (first: "
            f"{missing[0]!r}); make the tokenizer with objectives=[{objective}], or give them as extra_tokens "
            f"(kosmos_data.objectives.special_tokens lists them)"
        )
    return [known[token] for token in tokens]
