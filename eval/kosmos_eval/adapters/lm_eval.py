"""Kosmos as a model of EleutherAI's lm-evaluation-harness, for the language tasks of KOSMOS-1 and MetaLM.

lm-eval (0.4.13) looks for no plug-ins, so the name ``kosmos`` is known once this module is imported;
``kosmos eval lm-eval CHECKPOINT --tasks hellaswag …`` does that, and hands its options to lm-eval's own command.

HellaSwag, PIQA, BoolQ, COPA, Winogrande, CB, StoryCloze need their data from the hub or local files
(``--include_path``).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from ..prompts import Prompt
from .harness import HarnessModel


@register_model("kosmos")
class KosmosLM(LM):
    """The text side of a Kosmos checkpoint: ``--model kosmos --model_args pretrained=FOLDER``."""

    def __init__(
        self, pretrained: str | Path, device: str | None = None, batch_size: int | str | None = None, **_: Any
    ) -> None:
        super().__init__()
        self.harness = HarnessModel(pretrained, device, batch_size)
        self._name = str(pretrained)

    @property
    def tokenizer_name(self) -> str:
        """Part of lm-eval's cache keys."""
        return self._name

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether it is the greedy one."""
        return self.harness.log_likelihoods([(_prompt(request.args[0]), request.args[1]) for request in requests])

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy or sampled continuations."""
        return self.harness.generate([(_prompt(request.args[0]), request.args[1]) for request in requests])

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, in windows without overlap, each after ``<s>``."""
        return [nats for nats, _ in self.harness.log_likelihoods([(None, request.args[0]) for request in requests])]


def _prompt(context: str) -> Prompt:
    return Prompt((context,)) if context else Prompt(())


def main(words: Sequence[str]) -> int:
    """lm-eval's own command line, which knows the model ``kosmos`` once this module is imported."""
    from lm_eval.__main__ import cli_evaluate

    with mock.patch.object(sys, "argv", ["lm-eval", *words]):
        cli_evaluate()
    return 0
