"""SGLang's door: its processes find this by the entry point ``sglang.srt.plugins`` and call it when they start.

As in vLLM (vllm_plugin.py) the model runs in the engine's Transformers backend: our modules, its linear layers, its
attention over a paged cache, our processor for pictures.
"""

from __future__ import annotations

from .vllm_plugin import ARCHITECTURE


def register() -> None:
    """Tell SGLang which class serves a Kosmos checkpoint, that it sees, and who prepares its pictures."""
    from sglang.srt.configs.model_config import multimodal_model_archs
    from sglang.srt.managers.multimodal_processor import PROCESSOR_MAPPING
    from sglang.srt.models.registry import ModelRegistry

    from .sglang_model import KosmosForConditionalGeneration, KosmosPictures

    ModelRegistry.models[ARCHITECTURE] = KosmosForConditionalGeneration
    PROCESSOR_MAPPING[KosmosForConditionalGeneration] = KosmosPictures
    if ARCHITECTURE not in multimodal_model_archs:
        multimodal_model_archs.append(ARCHITECTURE)
