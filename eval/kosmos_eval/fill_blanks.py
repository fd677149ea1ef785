"""GLM's way to classify: the words of each class are put into the blank of a pattern, and the likeliest class wins.

The model must be one trained to fill blanks (``<sop>``, ``<eop>``, blocks that see both sides); the scores are those
of ``kosmos_data.cloze``, which fine-tuning uses too. Source: GLM (arXiv 2103.10360), section 2.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from kosmos_data.cloze import Cloze

from .prompts import Likelihood, Prompt
from .runner import Runner


def fill(
    runner: Runner, asked: Mapping[Prompt, Sequence[str]], batch_rows: int
) -> Iterator[dict[Prompt, list[Likelihood]]]:
    """Score each prompt's words in its ``<mask>``, batch by batch.

    Args:
        runner: the model.
        asked: for texts with one ``<mask>`` each, without images, the words of each class.
        batch_rows: rows in a batch at most.

    Raises:
        ValueError: a prompt with images, or not exactly one blank; a tokenizer without GLM's tokens.
    """
    groups: dict[tuple[str, ...], list[Prompt]] = {}
    for prompt, texts in asked.items():
        if prompt.images or not all(isinstance(segment, str) for segment in prompt.segments):
            raise ValueError(f"method cloze reads text only, the prompt is {prompt.text[:60]!r}")
        groups.setdefault(tuple(texts), []).append(prompt)
    position = getattr(runner.model.config.text_config, "position_type", "rope")
    two_positions, both_ways = position == "learned_2d", position != "xpos"
    for texts, members in groups.items():
        verbalizers = {text: text.strip() for text in texts}
        cloze = Cloze(runner.processor, verbalizers, two_positions, bidirectional=both_ways)
        members.sort(key=runner.length)
        size = max(1, batch_rows // (1 if cloze.single_token else len(texts)))
        for start in range(0, len(members), size):
            batch = members[start : start + size]
            scores_NC = cloze.scores(runner.model, [prompt.text for prompt in batch])
            yield {prompt: list(map(Likelihood, row)) for prompt, row in zip(batch, scores_NC.tolist(), strict=True)}
