"""vLLM's door: ``vllm serve CHECKPOINT`` finds this by its entry point ``vllm.general_plugins``.

The model runs in vLLM's Transformers backend, which builds our own modules, puts its linear layers, norms and paged
attention in their place, and calls our processor for pictures. What that backend does not know stands in
vllm_model.py: the ids that an answer never holds. What it would compute wrongly is refused here.
"""

from __future__ import annotations

from .configuration_kosmos import KosmosConfig

ARCHITECTURE = "KosmosForConditionalGeneration"


def register() -> None:
    """Tell vLLM which class serves a Kosmos checkpoint; each of its processes calls this, some more than once."""
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, "kosmos.vllm_model:KosmosForVLLM")


def refuse_unserved(
    config: KosmosConfig, longest: int, devices: int = 1, engine: str = "vLLM", option: str = "--max-model-len"
) -> None:
    """Refuse what an engine with a paged cache would compute in another way than the model was trained.

    Args:
        config: of the checkpoint.
        longest: tokens of the longest row.
        devices: over how many the model is divided.
        engine: its name.
        option: by which it is told the longest row.

    Raises:
        ValueError: naming what it is, and what to do.
    """
    text = config.get_text_config()
    if config.coupling != "input":
        raise ValueError(
            f"coupling: {config.coupling} is not served by {engine}, which has no cache for it: kosmos serve"
        )
    if getattr(text, "position_type", None) == "learned_2d":
        raise ValueError(
            f"position_type: learned_2d is not served by {engine}, which counts one position a token: kosmos serve"
        )
    trained = getattr(text, "blockwise_causal_length", None)
    if trained is not None and longest > trained:
        raise ValueError(
            f"the longest row is {longest} tokens, but from {trained} on this checkpoint reads by blockwise causal "
            f"attention, which {engine} has not: give {option} {trained} or less"
        )
    if devices != 1:
        raise ValueError(
            f"the model is divided over {devices} devices, but the norms of its layers are over whole rows: serve it "
            "on one, without tensor or pipeline parallelism, and several copies by data parallelism"
        )
