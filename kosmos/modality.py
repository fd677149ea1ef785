"""What one kind of encoded segment is: the entry that :mod:`kosmos.modalities` has of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

Inputs: TypeAlias = Mapping[str, Any]


@dataclass
class Reader:
    """How a processor reads the segments of one modality; saved with it. A subclass adds fields that JSON takes.

    Attributes:
        num_tokens: places that one input takes in the decoder, the queries of its connector.
    """

    connector: ClassVar[dict[str, str]] = {"num_tokens": "num_queries"}
    """Fields that the connector of the model has too, and their names there."""
    encoder: ClassVar[dict[str, str]] = {}
    """Fields that the config of the encoder has too, and their names there."""

    num_tokens: int = 64

    @classmethod
    def of(cls, folder: Path, **fields: Any) -> Reader:
        """Return the settings for an encoder that was published in ``folder``; ``fields`` are given beside it."""
        return cls(**fields)

    def check(self, config: Any) -> None:
        """Refuse, by a ValueError, an encoder whose ``config`` does not fit what this reader makes."""


@dataclass(frozen=True)
class Modality:
    """One kind of encoded segment.

    Attributes:
        name: what one of its inputs is called in messages, logs and counts.
        inputs: arguments of the model's ``forward``. The first brings the inputs, the others may be left out.
        config: field of the model's config that describes the encoder; the model has none where it is None.
        connector_config: field that describes the connector.
        token: field that holds the id of the placeholder.
        encoder: attribute of the encoder in ``KosmosModel``, and so its key in checkpoints.
        connector: attribute of the connector.
        parts: names of encoder and connector in counts of parameters and norms; another modality has other names.
        marks: the tokens before, for and behind its features; the outer two may be empty.
        payload: tells what the encoder reads of a segment, by the processor; None if there is nothing to read.
        stack: makes the inputs of a model from payloads.
        build: makes the encoder, a module with ``width``, from its config; None: it is that of an earlier modality.
        read: turns a model and inputs into features, (I, Q, D) for I inputs of Q features or (N, D) end to end.
        places: tells how many placeholders each of I inputs takes, by the config of a model or by a processor.
        smallest: makes the smallest input, which a rank without one reads, so that it has every gradient.
        units: counts what the cost of inputs is counted in: images, tokens of spans.
        typical: makes an input of the size for which the cost of a unit is told (kosmos/cost.py); None: ``smallest``.
        unit: what a unit is called; None: ``name``.
        index: finds in inputs on the CPU, by the encoder, what ``read`` would have to ask a device for, as further
            arguments of it; None: nothing. ValueError for inputs that the encoder would refuse.
        reader: class of the processor's settings for this modality, see ``Reader``; None: it has none.
        size: field of config and processor that holds the places of one input; None: places are told in another way.
        tokenizer: attribute of the processor that holds the encoder's own tokenizer, None there if it reads the
            decoder's tokens; None here: the encoder reads no text alone.
        plural: what several inputs are called; None: ``name``.
        logged: name of the count of units in a run's metrics; None: it is not logged.
        about: says in a sentence, by the config, what the encoder reads, for a model card; None: nothing.
        persona: whether a persona can be given as one of its inputs, which attention routing then tells apart.
    """

    name: str
    inputs: tuple[str, ...]
    config: str
    connector_config: str
    token: str
    encoder: str
    connector: str
    parts: tuple[str, str]
    marks: tuple[str, str, str]
    payload: Callable[[Any, Any], Any]
    stack: Callable[[Sequence[Any]], dict[str, Tensor]]
    build: Callable[[Any], nn.Module] | None
    read: Callable[..., Tensor]
    places: Callable[[Any, Inputs], list[int]]
    smallest: Callable[[Any, torch.device], dict[str, Tensor]]
    units: Callable[[Inputs], int]
    typical: Callable[[Any, torch.device], dict[str, Tensor]] | None = None
    unit: str | None = None
    index: Callable[[Any, Inputs], dict[str, Tensor]] | None = None
    reader: type[Reader] | None = None
    size: str | None = None
    tokenizer: str | None = None
    plural: str | None = None
    logged: str | None = None
    about: Callable[[Any], str] | None = None
    persona: bool = False

    @property
    def mark(self) -> str:
        """What stands for one input in the text of a prompt: the mark before it, or else its placeholder."""
        return self.marks[0] or self.marks[1]

    def described(self, config: Any) -> Any:
        """Return what a config, or its fields as a mapping, says of the encoder; None: the model has none."""
        return config.get(self.config) if isinstance(config, Mapping) else getattr(config, self.config, None)

    def given(self, inputs: Inputs) -> dict[str, Tensor]:
        """Return those of ``inputs`` that are this modality's and are there; empty: this batch has none of it."""
        found = {name: inputs[name] for name in self.inputs if inputs.get(name) is not None}
        return found if self.inputs[0] in found else {}

    def count(self, inputs: Inputs) -> int:
        """Return how many units (``units``) a batch holds, 0 without any."""
        return self.units(found) if (found := self.given(inputs)) else 0

    def inputs_per_row(self, config: Any, places_BT: Tensor, inputs: Inputs) -> list[int]:
        """Count the inputs of each row: whole inputs, taken in order, until the row's placeholders are used up.

        Raises:
            ValueError: the rows' placeholders do not take all inputs.
        """
        counts, sizes = [], self.places(config, inputs)
        for slots in places_BT.sum(1).tolist():
            count = 0
            while slots > 0 and sizes:
                slots -= sizes.pop(0)
                count += 1
            counts.append(count)
        if sizes:
            total = len(sizes) + sum(counts)
            raise ValueError(
                f"{self.inputs[0]} bring {total} {self.name}s, but the placeholders take {sum(counts)} of them"
            )
        return counts
