"""Kosmos: MetaLM / KOSMOS-1, a causal language model that reads images and text spans through frozen encoders.

Everything is imported on first use, so that ``import kosmos`` costs milliseconds. It also makes transformers' Auto
classes (``AutoModelForImageTextToText``, ``AutoProcessor`` …) know Kosmos, in whichever order the two are imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import auto

__version__ = "0.1.0"

_EXPORTS = {
    "KosmosConfig": "configuration_kosmos",
    "KosmosForConditionalGeneration": "modeling_kosmos",
    "KosmosModel": "modeling_kosmos",
    "KosmosProcessor": "processing_kosmos",
    "KosmosImageProcessor": "image_processing_kosmos",
    "tokenizer_from_sentencepiece": "tokenization_kosmos",
    "train_tokenizer": "tokenization_kosmos",
    "Conversation": "conversation",
    "find_checkpoint": "loading",
    "load": "loading",
}

__all__ = [
    "Conversation",
    "KosmosConfig",
    "KosmosForConditionalGeneration",
    "KosmosImageProcessor",
    "KosmosModel",
    "KosmosProcessor",
    "__version__",
    "find_checkpoint",
    "load",
    "tokenizer_from_sentencepiece",
    "train_tokenizer",
]

if TYPE_CHECKING:
    from .configuration_kosmos import KosmosConfig
    from .conversation import Conversation
    from .image_processing_kosmos import KosmosImageProcessor
    from .loading import find_checkpoint, load
    from .modeling_kosmos import KosmosForConditionalGeneration, KosmosModel
    from .processing_kosmos import KosmosProcessor
    from .tokenization_kosmos import tokenizer_from_sentencepiece, train_tokenizer


auto.install()


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'kosmos' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
