"""Reading beyond the training length: blockwise causal attention for a model that is there already.

xPos (arXiv 2212.10554, section 3.3): outside training a token sees its own block of l/2 tokens and the one before it,
so that no distance occurs that training did not show. The answer to a prompt of up to l tokens does not change.
"""

from __future__ import annotations

import argparse
from typing import Any

from .configuration_kosmos import KosmosTextConfig

TIMES = 4  # as far as docs/evidence.md measures it


def extrapolate(model: Any, processor: Any, times: int = TIMES) -> int:
    """Let a model read ``times`` its training length l, by blockwise causal attention, from now on.

    Args:
        model: a KosmosForConditionalGeneration with xPos or RoPE; its ``text_config`` is changed.
        processor: its processor, whose limit becomes the new one.
        times: how many training lengths a prompt with its answer may have, at least 1.

    Returns:
        The longest input, in tokens.

    Raises:
        ValueError: ``times`` below 1, or positions that end with the training length (sinusoidal, learned, those of
            a language model of transformers).
    """
    if times < 1:
        raise ValueError(f"extrapolate: {times} times the training length; give a whole number from 1 on")
    text = model.config.text_config
    if not isinstance(text, KosmosTextConfig):
        raise ValueError(f"extrapolate: the decoder is a {text.model_type} of transformers, which reads as it was made")
    if text.position_type not in ("xpos", "rope"):
        raise ValueError(
            f"extrapolate: text_config.position_type is {text.position_type!r}, whose places behind the training "
            "length the model has never seen; train with 'xpos'"
        )
    length = text.max_position_embeddings
    text.blockwise_causal_length = length - length % 2  # a block is half of it
    processor.max_length = times * length
    return processor.max_length


def add_argument(parser: argparse.ArgumentParser) -> None:
    """Declare ``--extrapolate [TIMES]``."""
    parser.add_argument(
        "--extrapolate",
        nargs="?",
        const=TIMES,
        type=int,
        metavar="TIMES",
        help=f"read up to so many training lengths ({TIMES}), by blockwise causal attention",
    )
