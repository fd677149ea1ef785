"""Classification by filling a blank: a pattern with ``<mask>``, and a wording for each class (GLM, section 2.3).

    pattern  "{sentence} It was <mask> ."        verbalizers {positive: "good", negative: "very bad"}

The score of a class is the log-probability of writing its words (and ``<eop>``) in the blank; fine-tuning minimises the
cross-entropy over these scores (``tasks/data_utils.py``, ``downstream.py`` of THUDM/GLM): in runs by the objective
``cloze``, for which :meth:`Cloze.loss` is the plain reference. Where every class is a single
token, one pass gives all scores: the logits behind ``<sop>``, of those tokens only.

With ``objective`` a model is asked in the form that it was trained in: ``fill`` of its module says how. A model that
cannot look ahead (``causal``, ``prefix_lm``) is given each wording in its place and judged by what follows as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from . import objectives
from .example import Example, all_causal, text_only

if TYPE_CHECKING:
    from kosmos.processing_kosmos import KosmosProcessor

MASK = "<mask>"


class Cloze:
    """A task of filling one blank.

    Args:
        processor: tokenizer with the objective's special tokens (GLM: ``<sop>``, ``<eop>``).
        verbalizers: class → its wording.
        two_positions: GLM's pair of positions, for ``position_type: learned_2d``.
        length_penalty: a score is divided by (tokens of the wording) to this power; 0: plain sum.
        objective: name of the objective in whose form the blank is asked.
        bidirectional: what is read sees itself both ways where the objective has it so; False for a model that was
            trained with ``bidirectional: false``, which one with xPos always was.

    Raises:
        ValueError: an objective without such a form, fewer than two classes, a wording that is empty, shared, or has a
            token outside the vocabulary.
    """

    def __init__(
        self,
        processor: KosmosProcessor,
        verbalizers: Mapping[str, str],
        two_positions: bool = True,
        length_penalty: float = 0.0,
        objective: str = "glm",
        bidirectional: bool = True,
    ) -> None:
        self.processor, self.two_positions, self.length_penalty = processor, two_positions, length_penalty
        self.fill, self.bidirectional = objectives.filler(objective), bidirectional
        self.classes = list(verbalizers)
        self.wordings = [self._ids(name, text) for name, text in verbalizers.items()]
        if len(self.classes) < 2:
            raise ValueError(f"verbalizers {dict(verbalizers)}: a classification needs at least two classes")
        if len({tuple(ids) for ids in self.wordings}) < len(self.wordings):
            raise ValueError(f"verbalizers {dict(verbalizers)}: two classes have the same wording")

    @property
    def single_token(self) -> bool:
        """Whether every wording is one token."""
        return all(len(ids) == 1 for ids in self.wordings)

    def example(self, text: str, wording: Sequence[int]) -> Example:
        """The pattern with the words of one class; weight stands on the outputs that judge them.

        Raises:
            ValueError: the text has not exactly one ``<mask>``.
        """
        parts = text.split(MASK)
        if len(parts) != 2:
            raise ValueError(f"the pattern {text!r} has {len(parts) - 1} {MASK}; it needs exactly one")
        tokenizer = self.processor.tokenizer
        read = [tokenizer.bos_token_id, *self.processor.encode_text(parts[0])]
        ids = [*read, *wording, *self.processor.encode_text(parts[1]), tokenizer.eos_token_id]
        blank = len(read), len(read) + len(wording)
        example = self.fill(text_only(ids, len(read)), blank, self.processor, self.two_positions)
        return example if self.bidirectional else all_causal(example)

    def scores(self, model: Any, texts: Sequence[str]) -> Tensor:
        """Log-probability of each class in the blank of each text, (N, C); gradients flow where they are on."""
        examples = [self.example(text, self.wordings[0]) for text in texts] if self.single_token else []
        if examples and max(int((one.weight > 0).sum()) for one in examples) <= 2:  # the word, and what ends a blank
            logits_NTV = model(**pad(examples, self.processor, model.device, self.two_positions)).logits
            outputs = torch.tensor([int(np.argmax(one.weight > 0)) for one in examples], device=model.device)
            choices = torch.tensor([ids[0] for ids in self.wordings], device=model.device)
            at_blank_NV = logits_NTV[torch.arange(len(examples), device=model.device), outputs].float()
            return at_blank_NV.log_softmax(-1)[:, choices]
        examples = [self.example(text, wording) for text in texts for wording in self.wordings]
        inputs = pad(examples, self.processor, model.device, self.two_positions)
        width = inputs["input_ids"].shape[1]
        label_NT = torch.from_numpy(_stack([one.label for one in examples], width, 0)).to(model.device)
        weight_NT = torch.from_numpy(_stack([one.weight for one in examples], width, 0)).to(model.device)
        wanted_NT1 = label_NT.long().clamp(min=0)[..., None]  # where none is wanted the weight is 0
        log_probability_NT = model(**inputs).logits.float().log_softmax(-1).gather(-1, wanted_NT1)[..., 0]
        lengths = torch.tensor([len(ids) for ids in self.wordings], device=model.device)
        summed = (log_probability_NT * weight_NT).sum(1).view(len(texts), len(self.wordings))
        return summed / lengths**self.length_penalty

    def loss(self, model: Any, texts: Sequence[str], classes: Sequence[str]) -> Tensor:
        """Mean cross-entropy of the right classes over the scores."""
        wanted = torch.tensor([self.classes.index(name) for name in classes], device=model.device)
        return torch.nn.functional.cross_entropy(self.scores(model, texts), wanted)

    def _ids(self, name: str, text: str) -> list[int]:
        ids = self.processor.encode_text(text)
        if not ids:
            raise ValueError(f"verbalizer of class {name!r} is empty: {text!r}")
        if self.processor.tokenizer.unk_token_id in ids:
            raise ValueError(
                f"verbalizer {text!r} of class {name!r} has a token outside the vocabulary; choose other words"
            )
        return ids


def pad(examples: Sequence[Example], processor: KosmosProcessor, device: Any, two_positions: bool) -> dict[str, Tensor]:
    """Examples as rows of one batch, padded on the right."""
    width = max(map(len, examples))
    columns = {
        "input_ids": ([one.token for one in examples], processor.tokenizer.pad_token_id),
        "document_ids": ([one.document for one in examples], -1),
        "block_ids": ([one.block for one in examples], -1),
        "position_ids": ([one.position for one in examples], 0),
        **({"position_in_span": ([one.position_in_span for one in examples], 0)} if two_positions else {}),
    }
    return {
        name: torch.from_numpy(_stack(rows, width, filler)).long().to(device)
        for name, (rows, filler) in columns.items()
    }


def _stack(rows: Sequence[np.ndarray], width: int, filler: int) -> np.ndarray:
    return np.stack([np.pad(row, (0, width - len(row)), constant_values=filler) for row in rows])
