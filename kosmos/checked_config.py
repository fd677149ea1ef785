"""Fields of configurations, held to their names, types and sizes."""

# No `from __future__ import annotations` here: strict checks the types of fields, and skips those that are strings.
import logging
from contextvars import ContextVar
from dataclasses import fields
from functools import wraps
from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers.configuration_utils import PreTrainedConfig

from .limits import check_sizes
from .suggest import suggest

log = logging.getLogger("kosmos")
# What transformers writes into, or takes from, a configuration beside the fields of PreTrainedConfig.
TRANSFORMERS_FIELDS = {
    "attn_implementation", "auto_map", "name_or_path", "num_labels", "quantization_config", "task_specific_params",
    "tokenizer_class", "torch_dtype",
}  # fmt: skip


# Whether a saved config.json is being read, for the parts inside it.
_SAVED: ContextVar[bool] = ContextVar("saved", default=False)


def checked(cls: type) -> type:
    """Validate names, types and sizes of the fields as ``strict`` does, but raise ValueError, one line, with the field.

    transformers keeps whatever it is given, so that a mistyped field would do nothing. Here it is refused; only a file
    that was saved (it names its ``transformers_version``), perhaps by a later version of this package, may hold more.
    """
    cls = strict(cls)
    construct = cls.__init__

    @wraps(construct)
    def construct_checked(self: Any, *args: Any, **kwargs: Any) -> None:
        token = _SAVED.set(_SAVED.get() or "transformers_version" in kwargs)
        try:
            _check_names(cls, kwargs)
            check_sizes(cls.__name__, kwargs)
            construct(self, *args, **kwargs)
        except StrictDataclassError as error:
            cause = error.__cause__ if isinstance(error.__cause__, (ValueError, TypeError)) else error
            raise ValueError(f"{cls.__name__}: {' '.join(str(cause).split())}") from error
        finally:
            _SAVED.reset(token)

    cls.__init__ = construct_checked  # type: ignore[misc]
    return cls


def _check_names(cls: type, given: dict[str, Any]) -> None:
    """Refuse names that are neither fields nor something that transformers puts into configurations."""
    names = {field.name for field in fields(cls)}
    unknown = [name for name in given if name not in names and not name.startswith("_")]
    unknown = [name for name in unknown if name not in TRANSFORMERS_FIELDS and not hasattr(cls, name)]
    if unknown:  # generation parameters used to be saved here
        from transformers.generation import GenerationConfig

        unknown = [name for name in unknown if not hasattr(GenerationConfig(), name)]
    if unknown and _SAVED.get():
        log.warning(
            "%s: the saved configuration has fields unknown to this version, not used: %s", cls.__name__, unknown
        )
    elif unknown:
        own = sorted(names - {field.name for field in fields(PreTrainedConfig)})
        raise ValueError(f"{cls.__name__} has no field {unknown[0]!r}; {suggest(unknown[0], own, 'there are')}")
