"""An answer piece by piece: ``generate()`` runs in a thread, which ends when nobody listens any more.

The thread looks after each token whether it may go on. It must end before the interpreter does: a thread that is inside
torch at that moment takes the process down with it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer


class Abandoned(StoppingCriteria):
    """Ends every row when the listener has left, or the main thread has ended."""

    def __init__(self) -> None:
        self.left = threading.Event()

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Return whether the rows are done, (B,)."""
        done = self.left.is_set() or not threading.main_thread().is_alive()
        return torch.full((len(input_ids),), done, dtype=torch.bool, device=input_ids.device)


class Pieces(TextIteratorStreamer):
    """Hands the answer on as text, and each token to the streamer that the caller brought."""

    def __init__(self, tokenizer: Any, other: Any = None, ids: list[int] | None = None) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.other = other
        self.ids = ids

    def put(self, value: Tensor) -> None:
        """Take the prompt, then one token after the other."""
        if self.other is not None:
            self.other.put(value)
        if self.ids is not None and not self.next_tokens_are_prompt:
            self.ids += value.flatten().tolist()
        super().put(value)

    def end(self) -> None:
        """Take the end of the answer."""
        if self.other is not None:
            self.other.end()
        super().end()


def stream_answer(
    model: Any, processor: Any, inputs: dict[str, Any], generation: dict[str, Any], ids: list[int] | None = None
) -> Iterator[str]:
    """Yield the text that ``model.generate(**inputs, **generation)`` writes, without leading blanks.

    Where an answer ends with its line, the end of the line is left out.

    Where several answers are compared (beams), nothing is known before the end: the text is one piece. ``ids`` takes
    the tokens of the answer, special ones among them.

    Raises:
        Exception: what ``generate()`` raises.
    """
    abandoned, tokenizer = Abandoned(), processor.tokenizer
    pieces = Pieces(tokenizer, generation.get("streamer"), ids)
    options: dict[str, Any] = {
        **generation,
        "stopping_criteria": StoppingCriteriaList([*(generation.get("stopping_criteria") or ()), abandoned]),
    }
    options.setdefault("tokenizer", tokenizer)  # stop strings need it
    if _beams(model, generation) == 1:
        options["streamer"] = pieces
    failures: list[BaseException] = []

    def generate() -> None:
        try:
            written = model.generate(**inputs, **options)
            if "streamer" not in options:
                rows = written if isinstance(written, Tensor) else written.sequences
                pieces.put(inputs["input_ids"][0])
                pieces.put(rows[0, inputs["input_ids"].shape[1] :])
                pieces.end()
        except BaseException as error:
            failures.append(error)
            TextIteratorStreamer.end(pieces)

    thread = threading.Thread(target=generate, name="answer")
    thread.start()
    try:
        first = True
        for piece in pieces:
            text = piece.replace("\n", "") if processor.turn_end == "line" else piece
            text = text.lstrip() if first else text
            if text:
                first = False
                yield text
    finally:
        abandoned.left.set()
        thread.join()
    if failures:
        raise failures[0]


def _beams(model: Any, generation: dict[str, Any]) -> int:
    settings = generation.get("generation_config") or model.generation_config
    return generation.get("num_beams") or getattr(settings, "num_beams", None) or 1
