"""generate(): what images and text spans add to transformers' generation, and its lean decoding step."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin

from .decode import DecodeStep, GrowingCache, can_step

# The step of the generate() that is running in this thread; assisted generation nests them.
_STEP: ContextVar[DecodeStep | None] = ContextVar("step", default=None)


class KosmosGenerationMixin(GenerationMixin):
    """transformers' generation for prompts whose images and spans are not laid out by row."""

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' ``generate``; single tokens after the prompt go through ``DecodeStep`` where it applies."""
        decoder = self.model.decoder
        token = _STEP.set(DecodeStep(decoder) if not self.training and can_step(decoder) else None)
        try:
            return super().generate(*args, **kwargs)
        finally:
            _STEP.reset(token)

    def _decode_step(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: Cache,
        options: dict[str, Any],
    ) -> Tensor | None:
        """Return logits (B, 1, V) if this forward pass is one decoded token inside ``generate()``, else None."""
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or position_ids is None:
            return None
        step = _STEP.get()
        if step is None or step.decoder is not self.model.decoder:
            return None
        if any(value for name, value in options.items() if name not in ("use_cache", "return_dict")):
            return None
        hidden_BD = step(step.decoder.embed_tokens(input_ids[:, 0]), position_ids, attention_mask, cache)
        return self.lm_head(hidden_BD)[:, None]

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict, *args: Any, **kwargs: Any
    ) -> Any:
        given = model_kwargs.get("past_key_values")
        result = super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        made = model_kwargs.get("past_key_values")
        if given is None and type(made) is DynamicCache and generation_config.cache_implementation != "offloaded":
            model_kwargs["past_key_values"] = GrowingCache(self.config.get_text_config())
        return result

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, inputs_embeds: Tensor | None = None, is_first_iteration: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Encode images and spans once, with the prompt."""
        inputs = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in ("pixel_values", "span_input_ids", "span_attention_mask"):
                inputs.pop(name, None)
        return inputs

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        """Repeat rows for beams; a row's images and spans are repeated together, keeping the placeholders' order."""
        flat = {name: kwargs.pop(name, None) for name in ("pixel_values", "span_input_ids", "span_attention_mask")}
        if expand_size > 1 and input_ids is not None:
            if flat["pixel_values"] is not None:
                counts = (input_ids == self.config.image_token_id).sum(1) // self.config.num_image_tokens
                flat["pixel_values"] = _repeat_groups(flat["pixel_values"], counts.tolist(), expand_size)
            if flat["span_input_ids"] is not None:
                mask = flat["span_attention_mask"]
                mask = torch.ones_like(flat["span_input_ids"]) if mask is None else mask
                counts = _spans_per_row((input_ids == self.config.span_token_id).sum(1), mask[:, 1:].sum(1))
                flat["span_input_ids"] = _repeat_groups(flat["span_input_ids"], counts, expand_size)
                flat["span_attention_mask"] = _repeat_groups(mask, counts, expand_size)
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **kwargs)
        return input_ids, {**kwargs, **{name: value for name, value in flat.items() if value is not None}}


def _repeat_groups(flat: Tensor, counts: list[int], times: int) -> Tensor:
    return torch.cat([group.repeat(times, *[1] * (flat.ndim - 1)) for group in flat.split(counts)])


def _spans_per_row(slots_B: Tensor, lengths_S: Tensor) -> list[int]:
    """Count the spans of each row: whole spans, taken in order, until the row's placeholders are used up."""
    counts, lengths = [], lengths_S.tolist()
    for slots in slots_B.tolist():
        count = 0
        while slots > 0 and lengths:
            slots -= lengths.pop(0)
            count += 1
        counts.append(count)
    return counts
