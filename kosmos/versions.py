"""What differs between the versions of transformers that Kosmos runs with, 5.16 to 5.24; no other file asks for one.

* **5.24 calls the cache** ``cache`` where 5.23 and before say ``past_key_values``: among the inputs that ``generate()``
  carries from step to step, among the outputs of a model, and where gradient checkpointing looks for a cache to drop.
  PEFT 0.21 still reads and writes the old name. So our own code says ``past_key_values``, each ``forward`` takes the
  cache by either name (``either``), and what we hand to transformers is named ``CACHE``.
* **5.16 lets processors of logits index the vocabulary with the prompt**, so that ``repetition_penalty`` and
  ``no_repeat_ngram_size`` fail at placeholders beyond it; from 5.18 on they leave those out (``safe_processors``).
* **5.16 asks an assisted generation's stopping criteria about its candidates too**, before it asks about what it
  accepted; from 5.18 on about the latter only (``accepted_only``).

A folder that is shared with its code (``trust_remote_code``) carries this file as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from packaging.version import Version
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.generation import (
    LogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
)

INSTALLED = Version(transformers.__version__).release
CACHE = "cache" if INSTALLED >= (5, 24) else "past_key_values"


def either(past_key_values: Cache | None, cache: Cache | None) -> Cache | None:
    """Return the cache that was given by one of its two names.

    Raises:
        ValueError: two different ones were given.
    """
    if past_key_values is not None and cache is not None and past_key_values is not cache:
        raise ValueError("past_key_values and cache are two names of the same input: give one of them")
    return past_key_values if cache is None else cache


def named(past_key_values: Cache | None) -> dict[str, Cache | None]:
    """Return the cache as a keyword argument with the name that transformers looks for."""
    return {CACHE: past_key_values}


def cache_of(outputs: Any) -> Cache | None:
    """Return the cache among the outputs of a model."""
    return getattr(outputs, CACHE)


def take_cache(arguments: dict[str, Any]) -> Cache | None:
    """Take the cache out of keyword arguments, whichever its name."""
    return either(arguments.pop("past_key_values", None), arguments.pop("cache", None))


def refuse_other_caches(arguments: dict[str, Any]) -> None:
    """Refuse a cache by a third name: without it each step would read one token alone, and write wrong ones silently.

    Raises:
        ValueError: one of the keyword arguments is a cache.
    """
    for name, value in arguments.items():
        if isinstance(value, Cache):
            raise ValueError(
                f"{name} is a {type(value).__name__}, but Kosmos takes a cache as past_key_values or cache; "
                f"transformers {transformers.__version__} may be newer than this version of Kosmos (kosmos doctor)"
            )


class SpareColumn(LogitsProcessor):
    """Calls a processor with a column more than the vocabulary has, which takes the tokens that are beyond it."""

    def __init__(self, processor: LogitsProcessor) -> None:
        self.processor = processor

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the processed scores (B, V)."""
        size = scores.shape[-1]
        return self.processor(input_ids.clamp(max=size), F.pad(scores, (0, 1)))[:, :size]


def safe_processors(processors: Iterable[Any]) -> list[Any]:
    """Return the processors, those that would index the scores with placeholders behind a ``SpareColumn``."""
    if INSTALLED >= (5, 18):
        return list(processors)
    unsafe = (NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor)
    return [SpareColumn(each) if type(each) in unsafe else each for each in processors]


class EverySecond(StoppingCriteria):
    """Asks ``criterion`` at every second call; the others are about candidates, which it lets pass."""

    def __init__(self, criterion: StoppingCriteria) -> None:
        self.criterion, self.candidates = criterion, False

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Return whether the rows are done, (B,)."""
        self.candidates = not self.candidates
        if self.candidates:
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        return self.criterion(input_ids, scores, **kwargs)


def accepted_only(criterion: StoppingCriteria) -> StoppingCriteria:
    """Return what asks ``criterion`` about accepted tokens only in an assisted generation."""
    return criterion if INSTALLED >= (5, 18) else EverySecond(criterion)
