"""generate(): what images and text spans add to transformers' generation, its rules of writing, its lean decoding step.

The rules of writing (where an answer ends, what pads it, what is never written) are ``processor.writing_rules()``. A
model takes them when it first meets its processor and keeps them in ``generation_config.json``, so that every door to a
checkpoint writes the same: ``generate()``, ``pipeline()``, chat, samples, ``kosmos eval``, the harnesses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.generation import (
    GenerationMixin,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    SuppressTokensLogitsProcessor,
)

from .decode_step import DecodeStep, GrowingCache, ModuleStep, can_step, watched
from .modalities import MODALITIES, Modality, input_names
from .sampling import Forbid, TreeStep, next_positions, sample
from .transformers_decoder import TransformersDecoder
from .versions import CACHE, accepted_only, cache_of, named, safe_processors, take_cache

# The step of the generate() that is running in this thread; assisted generation nests them.
_STEP: ContextVar[DecodeStep | ModuleStep | None] = ContextVar("step", default=None)
# The tokenizer that was given to it, for the stop strings of an assistant.
_TOKENIZER: ContextVar[Any] = ContextVar("tokenizer", default=None)

# What a prompt may bring for the loop of sampling.py; anything else is left to transformers.
KNOWN_INPUTS = {
    "attention_mask", "block_ids", "inputs_embeds", "logits_to_keep", "position_ids", "position_in_span", "use_cache",
    CACHE,
}  # fmt: skip
STEPWISE = ("forward", "prepare_inputs_for_generation", "_update_model_kwargs_for_generation", "_prefill")


class KosmosGenerationMixin(GenerationMixin):
    """transformers' generation for prompts whose images and spans are not laid out by row."""

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' ``generate``; single tokens after the prompt go through ``DecodeStep`` where it applies."""
        if (cache := take_cache(kwargs)) is not None:
            kwargs[CACHE] = cache
        step = _STEP.set(self._lean_step())
        tokenizer = _TOKENIZER.set(kwargs.get("tokenizer") or _TOKENIZER.get())
        try:
            return super().generate(*args, **kwargs)
        finally:
            _STEP.reset(step)
            _TOKENIZER.reset(tokenizer)

    def take_rules(self, processor: Any) -> None:
        """Write by the processor's rules from now on, unless the checkpoint brought some (``suppress_tokens``)."""
        if self.generation_config.suppress_tokens is None:
            self.generation_config.update(**processor.writing_rules())

    def ends(self) -> frozenset[int]:
        """The tokens that end an answer."""
        found = self.generation_config.eos_token_id
        return frozenset([] if found is None else [found] if isinstance(found, int) else found)

    def never_written(self, tokens: Iterable[int] | None) -> list[int]:
        """``tokens`` and the placeholders: those stand for an encoder's output, an answer never holds them."""
        placeholders = [getattr(self.config, modality.token, None) for modality in MODALITIES.values()]
        size = self.config.get_text_config().vocab_size
        return sorted({token for token in (*(tokens or ()), *placeholders) if token is not None and token < size})

    def adjust_generation_fn(self, generation_config: Any, *args: Any, **kwargs: Any) -> None:
        """transformers reads ``generation_config.json``; an older checkpoint has no rules there, its processor has."""
        super().adjust_generation_fn(generation_config, *args, **kwargs)
        folder = kwargs.get("pretrained_model_name_or_path", args[2] if len(args) > 2 else None)
        if generation_config is None and folder is not None:
            self.take_rules_of(folder)

    def take_rules_of(self, folder: Any) -> None:
        """``take_rules`` of the processor that is in a folder, if there is one."""
        from .processing_kosmos import load_processor

        if self.generation_config.suppress_tokens is None and (Path(folder) / "processor_config.json").is_file():
            self.take_rules(load_processor(folder))

    def _lean_step(self) -> DecodeStep | ModuleStep | None:
        decoder = self.model.decoder
        if self.training or watched(self.model) or watched(decoder):
            return None
        if self.config.cross_layers():  # its layers are no part of the decoder
            return None
        if isinstance(decoder, TransformersDecoder):
            return ModuleStep(decoder)
        return DecodeStep(decoder) if can_step(decoder) else None

    def step_and_head(self) -> tuple[Callable[..., Tensor], nn.Module]:
        """What ``sampling.write`` runs for a token outside of ``generate()``, and what makes logits of its output."""
        step = self._lean_step()
        if step is None or watched(self) or self._overrides("forward"):
            return TreeStep(self), nn.Identity()
        return step, self.lm_head

    def _overrides(self, *names: str) -> bool:
        """Whether the model, or a class derived from ours, has a method of its own of one of these names."""
        home = next(base for base in type(self).__mro__ if KosmosGenerationMixin in base.__bases__)
        return any(name in vars(self) or getattr(type(self), name) is not getattr(home, name) for name in names)

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> LogitsProcessorList:
        """transformers' processors, but what is never written is forbidden by ours, see ``Forbid``."""
        given = super()._get_logits_processor(*args, **kwargs)
        theirs = [processor for processor in given if type(processor) is SuppressTokensLogitsProcessor]
        never = self.never_written(token for processor in theirs for token in processor.suppress_tokens.tolist())
        kept = safe_processors(processor for processor in given if processor not in theirs)
        return LogitsProcessorList([Forbid(never, kwargs.get("device")), *kept] if never else kept)

    def _get_stopping_criteria(
        self, generation_config: Any, stopping_criteria: Any, tokenizer: Any = None, **kwargs: Any
    ) -> Any:
        """transformers hands stop strings on to an assistant, but not the tokenizer that they need."""
        if tokenizer is None and generation_config.is_assistant:
            tokenizer = _TOKENIZER.get()
        return super()._get_stopping_criteria(generation_config, stopping_criteria, tokenizer=tokenizer, **kwargs)

    def _decode_step(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: Cache,
        position_in_span: Tensor | None,
        options: dict[str, Any],
    ) -> Tensor | None:
        """Return logits (B, 1, V) if this forward pass is one decoded token inside ``generate()``, else None."""
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or position_ids is None:
            return None
        step = _STEP.get()
        if not isinstance(step, DecodeStep) or step.decoder is not self.model.decoder:
            return None
        asked = [value for name, value in options.items() if name not in ("use_cache", "return_dict")]
        if any(torch.is_tensor(value) or value for value in asked):
            return None
        embeds_BD = step.decoder.embed_tokens(input_ids)[:, 0]
        return self.lm_head(step(embeds_BD, position_ids, attention_mask, cache, position_in_span))[:, None]

    def _sample(
        self,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        synced_gpus: bool = False,
        streamer: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        """Greedy search and sampling: on a CPU by our own loop where nothing but tokens is asked for."""
        step = _STEP.get()
        if step is not None and not synced_gpus and self._loops(step, generation_config, model_kwargs):
            return sample(
                self, step, input_ids, logits_processor, stopping_criteria, generation_config, streamer, model_kwargs
            )
        return super()._sample(
            input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus, streamer, **model_kwargs
        )

    def _assisted_decoding(self, input_ids: Tensor, *args: Any, stopping_criteria: Any, **kwargs: Any) -> Any:
        """transformers asks its criteria after several tokens at a time, and so misses stop strings between them."""
        ends = EveryEnd(stopping_criteria, input_ids.shape[1])
        out = super()._assisted_decoding(
            input_ids, *args, stopping_criteria=StoppingCriteriaList([accepted_only(ends)]), **kwargs
        )
        if isinstance(out, Tensor):
            return out[:, : ends.length]
        beyond = out.sequences.shape[1] - ends.length
        if beyond:
            out.sequences = out.sequences[:, :-beyond]
            cache_of(out).crop(-beyond)
            for name in ("scores", "logits", "attentions", "hidden_states"):
                if out.get(name) is not None:
                    out[name] = out[name][:-beyond]
        return out

    def _loops(self, step: DecodeStep | ModuleStep, generation_config: Any, inputs: dict[str, Any]) -> bool:
        """Whether ``sampling.sample`` may stand for transformers' loop: nobody looks at, or changes, what it skips."""
        if self._overrides(*STEPWISE):
            return False
        if step.decoder is not self.model.decoder or self.device.type != "cpu" or watched(self):
            return False
        if generation_config.return_dict_in_generate or generation_config.is_assistant:
            return False
        if generation_config.prefill_chunk_size is not None or inputs.get("position_ids") is None:
            return False
        cache = inputs.get(CACHE)
        ours = type(cache) is GrowingCache or (isinstance(step, ModuleStep) and type(cache) is DynamicCache)
        if not ours or cache.get_seq_length() or not inputs.get("use_cache"):
            return False
        if getattr(cache, "_is_user_defined", False):
            return False
        return {name for name, value in inputs.items() if value is not None} <= KNOWN_INPUTS | input_names()

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict, *args: Any, **kwargs: Any
    ) -> Any:
        given = model_kwargs.get(CACHE)
        result = super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        made = model_kwargs.get(CACHE)
        plain = type(made) is DynamicCache and all(type(layer) is DynamicLayer for layer in made.layers)
        if given is None and plain and generation_config.cache_implementation != "offloaded":
            model_kwargs[CACHE] = GrowingCache(self.config.get_text_config())
        return result

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, inputs_embeds: Tensor | None = None, is_first_iteration: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Encode images and spans once, and attend in both directions, with the prompt."""
        cache = take_cache(kwargs)
        inputs = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **named(cache), **kwargs
        )
        if cache is not None:  # by our name, which is PEFT's as well
            inputs["past_key_values"] = inputs.pop(CACHE)
        if is_first_iteration or not kwargs.get("use_cache", True):
            if kwargs.get("block_ids") is not None:
                inputs["attention_mask"] = kwargs.get("attention_mask")  # of a static cache it made a causal 4-D one
            return inputs
        assisting = inputs["input_ids"].shape[1] > 1 and not cache.get_seq_length()
        for name in ("block_ids", *input_names()):
            inputs.pop(name, None)
            if assisting and kwargs.get(name) is not None:  # an assistant's prompt is never a first iteration
                inputs[name] = kwargs[name]
        for name in ("position_in_span", "writing"):
            if inputs.get(name) is not None:
                inputs[name] = inputs[name][:, -inputs["input_ids"].shape[1] :]
        return inputs

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, num_new_tokens: int = 1, **kwargs: Any
    ) -> dict[str, Any]:
        """What is generated is causal, and inside a GLM span it counts in the second position only."""
        first, second, blocks = (model_kwargs.get(name) for name in ("position_ids", "position_in_span", "block_ids"))
        model_kwargs = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, *args, num_new_tokens=num_new_tokens, **kwargs
        )
        if model_kwargs.get("writing") is not None:
            model_kwargs["writing"] = F.pad(model_kwargs["writing"], (0, num_new_tokens), value=True)
        if blocks is not None:
            model_kwargs["block_ids"] = F.pad(blocks, (0, num_new_tokens), value=-1)
        if second is not None:
            first = torch.arange(second.shape[1], device=second.device)[None] if first is None else first
            first = first.expand(len(second), -1)
            for _ in range(num_new_tokens):
                next_first, next_second = next_positions(first[:, -1:], second[:, -1:])
                assert next_second is not None
                first, second = torch.cat([first, next_first], dim=1), torch.cat([second, next_second], dim=1)
            model_kwargs |= {"position_ids": first, "position_in_span": second}
        return model_kwargs

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        """Repeat rows for beams; a row's images and spans are repeated together, keeping the placeholders' order."""
        encoded = {name: kwargs.pop(name) for name in input_names() if kwargs.get(name) is not None}
        prompt = kwargs.get("inputs_embeds", input_ids)
        # of a prompt its last output is written
        if self.config.is_routed and prompt is not None and kwargs.get("writing") is None:
            kwargs["writing"] = torch.zeros(prompt.shape[:2], dtype=torch.bool, device=prompt.device)
            kwargs["writing"][:, -1] = True
        if expand_size > 1 and input_ids is not None:
            for modality in MODALITIES.values():
                if given := modality.given(encoded):
                    places = self._places_of(modality, input_ids, kwargs.get("inputs_embeds"))
                    counts = modality.inputs_per_row(self.config, places, given)
                    encoded |= {name: _repeat_groups(value, counts, expand_size) for name, value in given.items()}
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **kwargs)
        return input_ids, {**kwargs, **encoded}

    def _places_of(self, modality: Modality, input_ids: Tensor, inputs_embeds: Tensor | None) -> Tensor:
        """Find the modality's placeholders, (B, T); the ids are empty where ``generate()`` was given embeddings."""
        if inputs_embeds is not None:
            return self.model.find_places(modality, inputs_embeds)
        return input_ids == getattr(self.config, modality.token)

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        """transformers knows the inputs that ``forward`` names; a further modality's go through its ``kwargs``."""
        inputs = input_names() | {"alpha", "writing"}
        super()._validate_model_kwargs({name: value for name, value in model_kwargs.items() if name not in inputs})


class EveryEnd(StoppingCriteria):
    """Asks ``criteria`` at every length since the last time, one row; ``length`` is where they were first met."""

    def __init__(self, criteria: StoppingCriteriaList, length: int) -> None:
        self.criteria, self.length = criteria, length

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Return whether the row is done, (1,)."""
        assert input_ids.shape[1] > self.length
        done = torch.zeros(1, dtype=torch.bool, device=input_ids.device)
        while not done.any() and self.length < input_ids.shape[1]:
            self.length += 1
            done = self.criteria(input_ids[:, : self.length], scores, **kwargs)
        return done


def _repeat_groups(flat: Tensor, counts: list[int], times: int) -> Tensor:
    return torch.cat([group.repeat(times, *[1] * (flat.ndim - 1)) for group in flat.split(counts)])
