"""How a chat's answers are written: what ``generate()`` is told, and the names and values that are refused at once."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from .suggest import suggest

if TYPE_CHECKING:
    from .modeling_kosmos import KosmosForConditionalGeneration

LONGEST_ANSWER = 64


def with_defaults(max_new_tokens: int | None, generation: dict[str, Any]) -> dict[str, Any]:
    """Return what is handed to ``generate()``: the caller's settings, and ours where those say nothing."""
    defaults: dict[str, Any] = {}
    if "generation_config" not in generation:
        defaults = {"do_sample": False}
        if max_new_tokens is None and "max_length" not in generation:
            defaults["max_new_tokens"] = LONGEST_ANSWER
    if max_new_tokens is not None:
        defaults["max_new_tokens"] = max_new_tokens
    return {**defaults, **generation}


def check_options(model: KosmosForConditionalGeneration, generation: dict[str, Any]) -> None:
    """Refuse, by a ValueError, what ``generate()`` would refuse at the first question, and more than one answer."""
    from transformers import GenerationConfig, GenerationMixin

    calls = (GenerationMixin.generate, model.forward)
    known = vars(GenerationConfig()).keys() | {name for call in calls for name in inspect.signature(call).parameters}
    for name in generation:
        if name not in known:
            near = suggest(name, known)
            said = near if near.startswith("did you mean") else "transformers' GenerationConfig lists them"
            raise ValueError(f"unknown option {name!r} of generate(); {said}")
    if generation.get("num_return_sequences", 1) != 1:
        raise ValueError(f"num_return_sequences={generation['num_return_sequences']}: a question has one answer")


def by_hand(model: KosmosForConditionalGeneration, alpha: float | None) -> dict[str, Any]:
    """Return the option that holds α, none where it is None; ValueError for a model without attention routing."""
    if alpha is None:
        return {}
    if not model.config.is_routed:
        raise ValueError("alpha was given, but this model has no attention routing (text_config.routing_layers)")
    return {"alpha": checked_alpha(alpha)}


def checked_alpha(alpha: float) -> float:
    """Return α as it is; ValueError unless it is a share of the attention, 0 to 1."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}: it is 0, the persona does not count, to 1")
    return float(alpha)
