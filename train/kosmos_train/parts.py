"""What the programs that make a part of a model (vision.py, encoder.py, tokenizer.py) share.

They run on one process, on corpora of the same format as the training's, and leave out what cannot be read.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class PartConfig:
    """Training of one encoder on one process; the encoder decides on the defaults."""

    model: dict[str, Any] = field(default_factory=dict)
    """The encoder's own config, as its library names the fields."""
    processor: str = ""
    """Folder of the Kosmos processor, whose tokenizer (and image processor) the encoder shares."""
    shards: list[str] = field(default_factory=list)
    """Corpora to train on."""
    steps: int = 10_000
    """Updates."""
    batch_size: int = 64
    """Examples per update."""
    lr: float = 1e-3
    """Peak learning rate of AdamW; it falls to 0."""
    warmup: int = 100
    """Updates of linear warm-up."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    seed: int = 0
    """Of the weights, the order and all else that is drawn."""


def warn_left_out(where: str, reasons: Mapping[str, int]) -> None:
    """Say how many documents of ``where`` were left out, by reason; nothing if there are none."""
    if reasons:
        counts = ", ".join(f"{count} × {reason}" for reason, count in sorted(reasons.items()))
        logging.getLogger(__name__).warning("%s: documents left out: %s", where, counts)
