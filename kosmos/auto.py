"""Make transformers' Auto classes know Kosmos, whichever of the two packages is imported first.

``import kosmos`` must stay cheap, so nothing of transformers is imported here. Each Auto module is extended right after
it is loaded: at once if transformers is loaded already, else through an import hook that fires for these names only.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_AUTO = "transformers.models.auto."


def _register_config(auto: ModuleType) -> None:
    from . import configuration_kosmos as configuration

    auto.AutoConfig.register("kosmos", configuration.KosmosConfig, exist_ok=True)


def _register_model(auto: ModuleType) -> None:
    """By name only: modeling_kosmos cannot be imported while transformers is half-way through an import of its own."""
    from .configuration_kosmos import KosmosConfig

    for auto_class, name in (
        (auto.AutoModel, "KosmosModel"),
        (auto.AutoModelForCausalLM, "KosmosForConditionalGeneration"),  # what TRL reads a reference model with
        (auto.AutoModelForImageTextToText, "KosmosForConditionalGeneration"),
    ):
        mapping = auto_class._model_mapping
        mapping._extra_content = _LazyClasses(mapping._extra_content)
        mapping._extra_content.setdefault(KosmosConfig, name)


class _LazyClasses(dict):
    """Registered classes of an Auto class; one given as a name of this package is imported when it is asked for."""

    def __getitem__(self, key: Any) -> Any:
        value = super().__getitem__(key)
        return getattr(importlib.import_module(__package__), value) if isinstance(value, str) else value

    def values(self) -> Any:
        return [self[key] for key in self]

    def items(self) -> Any:
        return [(key, self[key]) for key in self]


def _register_image_processor(auto: ModuleType) -> None:
    from .configuration_kosmos import KosmosConfig
    from .image_processing_kosmos import KosmosImageProcessor

    classes = {"pil": KosmosImageProcessor, "torchvision": KosmosImageProcessor}
    auto.AutoImageProcessor.register(KosmosConfig, image_processor_classes=classes, exist_ok=True)


def _register_tokenizer(auto: ModuleType) -> None:
    from transformers import PreTrainedTokenizerFast

    from .configuration_kosmos import KosmosConfig

    auto.AutoTokenizer.register(KosmosConfig, fast_tokenizer_class=PreTrainedTokenizerFast, exist_ok=True)


def _register_processor(auto: ModuleType) -> None:
    from .configuration_kosmos import KosmosConfig
    from .processing_kosmos import KosmosProcessor

    auto.AutoProcessor.register(KosmosConfig, KosmosProcessor, exist_ok=True)


_REGISTRATIONS: dict[str, Callable[[ModuleType], None]] = {
    _AUTO + "configuration_auto": _register_config,
    _AUTO + "modeling_auto": _register_model,
    _AUTO + "image_processing_auto": _register_image_processor,
    _AUTO + "tokenization_auto": _register_tokenizer,
    _AUTO + "processing_auto": _register_processor,
}


class _AutoModuleFinder(importlib.abc.MetaPathFinder):
    """Finds the Auto modules as usual, and registers Kosmos when one has been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _REGISTRATIONS:
            return None
        position = sys.meta_path.index(self)
        for finder in sys.meta_path[position + 1 :]:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                _register_after_execution(spec.loader, _REGISTRATIONS[fullname])
                return spec
        return None


def _register_after_execution(loader: importlib.abc.Loader, register: Callable[[ModuleType], None]) -> None:
    execute = loader.exec_module

    def execute_and_register(module: ModuleType) -> None:
        execute(module)
        register(module)

    loader.exec_module = execute_and_register  # type: ignore[method-assign]


def install() -> None:
    """Register with the Auto modules that are loaded, and with the others as soon as they are."""
    if not any(isinstance(finder, _AutoModuleFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AutoModuleFinder())
        for name, register in _REGISTRATIONS.items():
            if name in sys.modules:
                register(sys.modules[name])
