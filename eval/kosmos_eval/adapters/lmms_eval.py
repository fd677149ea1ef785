"""Kosmos as a model of lmms-eval (0.7.3), zero-shot: ``python -m lmms_eval --model kosmos --model_args
pretrained=FOLDER``.

lmms-eval finds it through the entry point ``lmms_eval.models: kosmos = kosmos_eval.adapters.lmms_eval:manifest``. Its
few-shot path for images calls a method that does not exist; for few-shot use ``kosmos eval``. lmms-eval pins many
packages: give it an environment of its own.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from ..prompts import Prompt, Segment
from .harness import HarnessModel


class KosmosLmms(lmms):
    """A Kosmos checkpoint for lmms-eval's simple (non-chat) models.

    Args:
        template: what the task's text is put into; the wording the model was tuned on scores best.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        device: str | None = None,
        batch_size: int | str | None = None,
        template: str = "Question: {context} Answer:",
        **_: Any,
    ) -> None:
        super().__init__()
        self.harness = HarnessModel(pretrained, device, batch_size)
        self.template = template
        self._folder = tempfile.TemporaryDirectory(prefix="kosmos-lmms-")

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Answers to (context, options, doc_to_visual, doc_id, task, split)."""
        asked = []
        for request in requests:
            context, options, visual, doc_id, task, split = request.args
            asked.append((self._prompt(context, visual(self.task_dict[task][split][doc_id])), options))
        return self.harness.generate(asked)

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Log-probability of (context, continuation, doc_to_visual, doc_id, task, split)."""
        asked = []
        for request in requests:
            context, target, visual, doc_id, task, split = request.args
            document = self.task_dict[task][split][doc_id]
            text = target if isinstance(target, str) else target(document)
            asked.append((self._prompt(context, visual(document)), text))
        return self.harness.log_likelihoods(asked)

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Not offered: lmms-eval's multi-round tasks address other models."""
        raise NotImplementedError("Kosmos answers single questions in lmms-eval; multi-round tasks are not supported")

    def _prompt(self, context: str, images: list[Any] | None) -> Prompt:
        pictures: list[Segment] = [self._keep(image) for image in images or []]
        text = context.replace("<image>", "").strip()
        return Prompt((*pictures, self.template.format(context=text)), (len(pictures),) if pictures else ())

    def _keep(self, image: Any) -> Path:
        """The engine reads files and encodes equal ones once, so a picture is written under the hash of its pixels."""
        image = image.convert("RGB")
        path = Path(self._folder.name) / f"{hashlib.sha256(image.tobytes()).hexdigest()}.png"
        if not path.exists():
            image.save(path)
        return path


manifest = ModelManifest(model_id="kosmos", simple_class_path="kosmos_eval.adapters.lmms_eval.KosmosLmms")
