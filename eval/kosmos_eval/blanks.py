"""GLM's way to classify: the words of each class are put into the blank of a pattern, and the likeliest class wins.

The model must be one trained to fill blanks (``<sop>``, ``<eop>``, blocks that see both sides); the scores are those
of ``kosmos_data.cloze``, which fine-tuning uses too. Source: GLM (arXiv 2103.10360), section 2.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from kosmos_data.cloze import Cloze

from .engine import Answer
from .prompts import Prompt
from .runner import Runner


@torch.no_grad()
def fill(
    runner: Runner, prompts: Sequence[Prompt], wordings: Sequence[Sequence[str]], batch_rows: int
) -> Iterator[list[Answer]]:
    """Score each prompt's wordings in its ``<mask>``; the answer's ``best`` is the likeliest one's place.

    Args:
        prompts: texts with one ``<mask>`` each, without images.
        wordings: the words of each class, for each prompt.

    Raises:
        ValueError: a prompt with images, or not exactly one blank; a tokenizer without GLM's tokens.
    """
    places: dict[tuple[str, ...], list[int]] = {}
    for place, (prompt, texts) in enumerate(zip(prompts, wordings, strict=True)):
        if prompt.images or not all(isinstance(segment, str) for segment in prompt.segments):
            raise ValueError(f"method cloze reads text only, the prompt is {prompt.text[:60]!r}")
        places.setdefault(tuple(texts), []).append(place)
    position = runner.model.config.text_config.position_type
    two_positions, both_ways = position == "learned_2d", position != "xpos"
    for texts, members in places.items():
        verbalizers = {str(i): text for i, text in enumerate(texts)}
        cloze = Cloze(runner.processor, verbalizers, two_positions, bidirectional=both_ways)
        members.sort(key=lambda place: runner.length(prompts[place]))
        size = max(1, batch_rows // (1 if cloze.single_token else len(texts)))
        for start in range(0, len(members), size):
            batch = members[start : start + size]
            scores_NC = cloze.scores(runner.model, [prompts[place].text for place in batch])
            rows = [tuple(row) for row in scores_NC.tolist()]
            yield [
                Answer(place, texts[row.index(max(row))].strip(), row, row.index(max(row)))
                for place, row in zip(batch, rows, strict=True)
            ]
