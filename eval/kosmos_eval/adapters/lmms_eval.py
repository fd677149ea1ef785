"""Kosmos as a model of lmms-eval (0.7.3), zero-shot: ``lmms-eval eval --model kosmos --model_args pretrained=FOLDER``.

lmms-eval finds it through the entry point ``lmms_eval.models: kosmos = kosmos_eval.adapters.lmms_eval:manifest``. Its
few-shot path for images calls a method that does not exist; for few-shot use ``kosmos eval``. lmms-eval pins many
packages: give it an environment of its own (eval/README.md).

Conventions of lmms-eval that differ from lm-eval's: a ``loglikelihood`` is a *loss* (its multiple choice takes the
smallest), and a task of several rounds asks its own ``doc_to_text`` what comes next.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from PIL.Image import Image

from ..prompts import Prompt, Segment
from ..tasks import IMAGE_MARK
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

    def loglikelihood(self, requests: list[Any]) -> list[GenerationResult]:
        """Loss of (context, continuation, doc_to_visual, doc_id, task, split), which is minus the log-probability of
        the continuation; and whether greedy decoding writes it.

        The pair comes inside a GenerationResult, the only form that 0.7.3 hands on: it turns a bare pair into a string
        and then fails, so that none of its own models can do multiple choice.
        """
        asked = []
        for request in requests:
            context, target, visual, doc_id, task, split = request.args
            document = self.task_dict[task][split][doc_id]
            text = target if isinstance(target, str) else target(document)
            asked.append((self._prompt(context, visual(document)), text))
        return [GenerationResult((-score, greedy)) for score, greedy in self.harness.log_likelihoods(asked)]

    def generate_until_multi_round(self, requests: list[Any]) -> list[list[str]]:
        """The answers of all rounds of (context, options, doc_to_visual, doc_to_text, doc_id, task, split).

        The first round is asked like a single question. Before each further one ``doc_to_text`` is given the answers so
        far and says what to show and ask next, or that the document is done. All documents take a round together.
        """
        talks = [_Talk(*request.args) for request in requests]
        for talk in talks:
            talk.visuals = talk.doc_to_visual(self._document(talk))
        active = talks
        while active:
            asked = [(self._prompt(talk.context, talk.visuals), talk.options) for talk in active]
            for talk, answer in zip(active, self.harness.generate(asked), strict=True):
                talk.answers.append(answer)
            active = [talk for talk in active if talk.next(self._document(talk))]
        return [talk.answers for talk in talks]

    def _document(self, talk: _Talk) -> Any:
        return self.task_dict[talk.task][talk.split][talk.doc_id]

    def _prompt(self, context: str, images: list[Any] | None) -> Prompt:
        """Images stand where the text has a mark for each, else before it."""
        pictures: list[Segment] = [self._keep(image) for image in images or []]
        pieces = self.template.format(context=context.strip()).split(IMAGE_MARK)
        if not pictures or len(pieces) != len(pictures) + 1:
            return Prompt((*pictures, "".join(pieces)), (len(pictures),) if pictures else ())
        segments = [pieces[0]] + [one for pair in zip(pictures, pieces[1:], strict=True) for one in pair]
        return Prompt(tuple(segment for segment in segments if segment != ""))

    def _keep(self, image: Any) -> Path:
        """The engine reads files and encodes equal ones once, so a picture is written under the hash of its pixels."""
        if not isinstance(image, Image):
            raise ValueError(f"Kosmos reads images only; this task shows {str(image)[:80]!r} ({type(image).__name__})")
        image = image.convert("RGB")
        name = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
        path = Path(self._folder.name) / f"{name}.png"
        if not path.exists():
            image.save(path)
        return path


@dataclass
class _Talk:
    """One document's rounds."""

    context: str
    options: dict[str, Any]
    doc_to_visual: Any
    doc_to_text: Any
    doc_id: int
    task: str
    split: str
    visuals: list[Any] | None = None
    answers: list[str] = field(default_factory=list)
    info: Any = None
    round: int = 0

    def next(self, document: Any) -> bool:
        """Ask the task for the next round; False if there is none."""
        self.round += 1
        visuals, context, done, answers, self.info = self.doc_to_text(
            document, previous_output=list(self.answers), round_idx=self.round, previous_round_info=self.info
        )
        self.answers = list(answers)
        if not done:
            self.visuals, self.context = visuals, context
        return not done


manifest = ModelManifest(model_id="kosmos", simple_class_path="kosmos_eval.adapters.lmms_eval.KosmosLmms")
