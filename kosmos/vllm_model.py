"""A Kosmos checkpoint in vLLM's Transformers backend; only vLLM imports this file (vllm_plugin.py)."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.model_executor.models.transformers import (
    MultiModalDummyInputsBuilder,
    MultiModalProcessingInfo,
    MultiModalProcessor,
    TransformersMultiModalForCausalLM,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from .modalities import MODALITIES
from .vllm_plugin import refuse_unserved


class KosmosProcessingInfo(MultiModalProcessingInfo):
    """What vLLM may be shown: pictures, where the model has eyes, and nothing else."""

    def _get_supported_modalities(self) -> list[str]:
        return ["image"] if self.get_hf_config().vision_config is not None else []


@MULTIMODAL_REGISTRY.register_processor(
    MultiModalProcessor, info=KosmosProcessingInfo, dummy_inputs=MultiModalDummyInputsBuilder
)
class KosmosForVLLM(TransformersMultiModalForCausalLM):
    """The backend's class, and the rules of writing that it does not read of ``generation_config.json``.

    Raises:
        ValueError: what ``refuse_unserved`` refuses.
    """

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        settings = vllm_config.model_config
        refuse_unserved(settings.hf_config, settings.max_model_len, vllm_config.parallel_config.world_size)
        if getattr(settings.hf_text_config, "blockwise_causal_length", None) is not None:
            # no row is as long as that, see above, but the rows that vLLM lays end to end are together
            settings.hf_text_config.blockwise_causal_length = None
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        for encoder in self._encoders().values():
            for part in encoder.modules():
                for name, buffer in part.named_buffers(recurse=False):  # timm makes its tables on the CPU
                    setattr(part, name, buffer.to(vllm_config.device_config.device))
        self.never = list(settings.try_get_generation_config().get("suppress_tokens") or [])

    def _encoders(self) -> dict[str, Any]:
        found = {modality.encoder: getattr(self.model, modality.encoder, None) for modality in MODALITIES.values()}
        return {name: encoder for name, encoder in found.items() if encoder is not None}

    def recursive_replace(self) -> None:
        """Put vLLM's layers in the decoder's and connectors' place; the encoders stay as their libraries made them.

        open_clip's attention reads the weights of its layers itself, and vLLM keeps those in a form of its own.
        """
        encoders = self._encoders()
        for name in encoders:
            setattr(self.model, name, None)
        super().recursive_replace()
        for name, encoder in encoders.items():
            setattr(self.model, name, encoder)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Hidden states (N, D) to logits (N, V); placeholders, which would have no picture, are never written."""
        logits = super().compute_logits(hidden_states)
        if logits is not None and self.never:
            logits[:, self.never] = float("-inf")
        return logits
