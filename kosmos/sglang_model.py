"""A Kosmos checkpoint in SGLang's Transformers backend; only SGLang imports this file (sglang_plugin.py)."""

from __future__ import annotations

from array import array
from typing import Any

import torch
from sglang.srt.managers.mm_utils import general_mm_embed_routine, pad_mm_tokens
from sglang.srt.models.transformers import TransformersMultiModalForCausalLM
from sglang.srt.multimodal.processors.transformers_auto import TransformersAutoMultimodalProcessor
from sglang.srt.runtime_context import get_parallel, get_server_args
from torch import Tensor, nn
from transformers import GenerationConfig

from .modalities import MODALITIES
from .vllm_plugin import refuse_unserved


class Backbone:
    """What SGLang calls the language model: embeddings of tokens, and the decoder over embeddings with pictures."""

    def __init__(self, served: KosmosForConditionalGeneration) -> None:
        self.served = served

    def get_input_embeddings(self) -> Any:
        """The module that embeds tokens."""
        return self.served.model.get_input_embeddings()

    def __call__(self, input_ids: None, forward_batch: Any, input_embeds: Tensor, positions: Tensor) -> Tensor:
        """Hidden states (N, D) of all rows, end to end."""
        return self.served._run_hf_backbone(input_ids, input_embeds, positions, forward_batch)


class KosmosForConditionalGeneration(TransformersMultiModalForCausalLM):
    """The backend's class, with pictures that its cache tells apart, and the rules of writing.

    Its name is the architecture's: by that SGLang finds who prepares the pictures.

    Raises:
        ValueError: what ``refuse_unserved`` refuses.
    """

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        text, parallel = config.get_text_config(), get_parallel()
        longest = get_server_args().context_length or text.max_position_embeddings
        refuse_unserved(config, longest, parallel.tp_size * parallel.pp_group.world_size, "SGLang", "--context-length")
        super().__init__(config, *args, **kwargs)
        rules = GenerationConfig.from_pretrained(config._name_or_path)
        self.never = list(rules.suppress_tokens or [])

    def recursive_replace(self) -> None:
        """Put SGLang's layers in the decoder's and connectors' place; encoders stay as their libraries made them."""
        names = {modality.encoder for modality in MODALITIES.values()}
        encoders = {name: found for name in names if (found := getattr(self.model, name, None)) is not None}
        for name in encoders:
            setattr(self.model, name, None)
        super().recursive_replace()
        for name, encoder in encoders.items():
            setattr(self.model, name, encoder)

    def _init_parameters(self, module: nn.Module) -> None:
        """Give parameters of the meta device memory where the engine runs; its own asks for an accelerator."""
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                if parameter.is_meta:
                    made = torch.empty_like(parameter, device=get_server_args().device)
                    setattr(part, name, nn.Parameter(made, requires_grad=False))

    def pad_input_ids(self, input_ids: array, mm_inputs: Any) -> array:
        """Each picture's places hold a number of its own, so that the cache of prefixes keeps pictures apart."""
        return pad_mm_tokens(input_ids, mm_inputs)

    def _forward_hidden_states(
        self, input_ids: Tensor, positions: Tensor, forward_batch: Any, input_embeds: Tensor | None = None
    ) -> Tensor:
        if input_embeds is not None:
            return super()._forward_hidden_states(input_ids, positions, forward_batch, input_embeds)
        return general_mm_embed_routine(
            input_ids=input_ids, forward_batch=forward_batch, language_model=Backbone(self), multimodal_model=self,
            positions=positions,
        )  # fmt: skip

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The engine's outputs; placeholders, which would have no picture, are never written."""
        outputs = super().forward(*args, **kwargs)
        if self.never and getattr(outputs, "next_token_logits", None) is not None:
            outputs.next_token_logits[:, self.never] = float("-inf")
        return outputs


class KosmosPictures(TransformersAutoMultimodalProcessor):
    """Our processor, as SGLang calls any of transformers."""

    models = [KosmosForConditionalGeneration]

    def _apply_hf_processor(self, text: str, images: Any = None, videos: Any = None) -> Any:
        """Encode a prompt with its pictures; one that a chat template wrote has begun already."""
        begun = text.startswith(self._processor.tokenizer.bos_token)
        shown = {"images": images} if images else {}
        return self._processor(text=text, return_tensors="pt", add_special_tokens=not begun, **shown)
