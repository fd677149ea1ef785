"""What lm-eval and lmms-eval both ask of a model, on top of the batched model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kosmos.loading import load

from ..items import stable_hash
from ..model import EvaluatedModel, in_order
from ..prompts import Pair, Prompt
from ..runner import Runner
from ..tasks import Decoding

logger = logging.getLogger(__name__)


class HarnessModel:
    """A checkpoint behind two questions: how likely is a continuation, and what comes next?

    Args:
        pretrained: a checkpoint folder or a run directory.
        device: where it runs; a GPU if there is one.
        batch_size: prompts in a batch at most; ``auto`` leaves it to us.
    """

    def __init__(self, pretrained: str | Path, device: str | None = None, batch_size: int | str | None = None) -> None:
        model, processor = load(pretrained, device)
        self.runner = Runner(model, processor)
        rows = 128 if batch_size is None or batch_size == "auto" else int(batch_size)
        self.model = EvaluatedModel(self.runner, max(rows, 1))
        self.truncated = 0

    def log_likelihoods(self, requests: Sequence[tuple[Prompt | None, str]]) -> list[tuple[float, bool]]:
        """For each (prompt, continuation) the summed log-probability and whether greedy decoding writes it.

        A prompt of several requests, such as the choices of one question, is read once; without one a text may be
        longer than the model reads.
        """
        room = max((len(self.runner.text_ids(text)) for _, text in requests), default=0)
        fitting = {prompt: prompt and self.fit(prompt, room) for prompt in dict.fromkeys(one for one, _ in requests)}
        pairs = [Pair(fitting[prompt], text) for prompt, text in requests]
        return [(reply.nats, reply.greedy) for reply in in_order(self.model.log_likelihoods(pairs))]

    def generate(self, requests: Sequence[tuple[Prompt, dict[str, Any]]], most_tokens: int = 64) -> list[str]:
        """Continue each prompt until one of its ``until`` strings, ``</s>`` or its length.

        Without ``until`` strings, or with one that begins with a newline, an answer also ends where the checkpoint's
        rules of writing end it.
        """
        texts = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for place, (_, options) in enumerate(requests):
            groups.setdefault(repr(sorted(options.items())), []).append(place)
        for places in groups.values():
            options = requests[places[0]][1]
            until = options.get("until") or []
            until = [until] if isinstance(until, str) else list(until)
            decoding = _decoding(options, most_tokens)
            prompts = [self.fit(requests[place][0], decoding.max_new_tokens) for place in places]
            seeds = [stable_hash("harness", prompt.text) for prompt in prompts]
            # a harness that names its ends may want several lines; what it does not name is the checkpoint's to say
            lines = not until or any(text.startswith("\n") for text in until)
            ends = self.runner.ends if lines else [self.runner.eos]
            for batch in self.model.generate(prompts, decoding, seeds, ends):
                for index, text in batch.items():
                    texts[places[index]] = _cut(text, until)
        return texts

    def fit(self, prompt: Prompt, room: int) -> Prompt:
        """Drop words from the front of a prompt that is too long, as the harnesses do, and say so."""
        excess = self.runner.length(prompt) + room - self.runner.max_length
        if excess <= 0:
            return prompt
        if len(prompt.segments) != 1 or not isinstance(prompt.segments[0], str):
            raise ValueError(
                f"a prompt with images takes {excess} tokens more than the model's {self.runner.max_length}"
            )
        words = prompt.segments[0].split(" ")
        while words and self.runner.length(Prompt((" ".join(words),))) + room > self.runner.max_length:
            words = words[max(1, len(words) // 50) :]
        self.truncated += 1
        logger.warning("prompt %d is too long for %d tokens: cut at the front", self.truncated, self.runner.max_length)
        return Prompt((" ".join(words),))


def _decoding(options: dict[str, Any], most_tokens: int) -> Decoding:
    length = int(options.get("max_gen_toks") or options.get("max_new_tokens") or most_tokens)
    temperature = float(options.get("temperature") or 0.0)
    if options.get("do_sample") and temperature > 0:
        return Decoding("sample", length, temperature=temperature, top_p=float(options.get("top_p") or 1.0))
    beams = int(options.get("num_beams") or 1)
    return Decoding("beam" if beams > 1 else "greedy", length, num_beams=beams)


def _cut(text: str, until: Sequence[str]) -> str:
    for stop in until:
        text = text.split(stop, 1)[0] if stop else text
    return text
