"""Objectives: document → :class:`~kosmos_data.example.Example`, one module each, found by name.

A module of this folder *is* an objective: it defines one subclass of :class:`Objective`, a dataclass whose fields are
its options, and in ``TOKENS`` the special tokens that it needs, or a function ``tokens`` of its options. Adding an
objective is adding one file; nothing else lists them. The seed is a pure function of the run's seed, the epoch and the
document, so an objective that draws at random gives the same example after a resume. ``mixture`` draws one of several
for each document, ``schedule`` changes the objective at given steps of the run.

A module may also define ``fill(flat, span, processor, two_positions)``: how a model of this objective is asked for the
words of one blank, with weight on the asked tokens only (:mod:`kosmos_data.cloze`).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from kosmos import settings
from kosmos.suggest import suggest

from ..document import Document
from ..example import Example, Flat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from kosmos.processing_kosmos import KosmosProcessor

SENTINELS = tuple(f"<extra_id_{number}>" for number in range(100))
"""T5's names; one stands for each hidden stretch of a text."""

Fill: TypeAlias = Callable[[Flat, tuple[int, int], "KosmosProcessor", bool], Example]


@dataclass
class Objective:
    """Makes examples of documents; it can be pickled. The fields of a subclass are its options."""

    def prepare(self, processor: KosmosProcessor) -> None:
        """Check the options and take what is needed of the run's processor.

        Raises:
            ValueError: options that do not fit together, or a tokenizer that lacks a token.
        """
        self.processor = processor
        self.bos, self.eos = processor.tokenizer.bos_token_id, processor.tokenizer.eos_token_id

    def __call__(self, document: Document, seed: int, step: int = 0) -> Example:
        """Make the example of a document.

        Args:
            document: of text, images and spans.
            seed: of all that is drawn.
            step: of the run, for a schedule.

        Raises:
            BadSample: the document cannot be used.
        """
        raise NotImplementedError

    def at(self, step: int) -> Objective:
        """Return the objective of ``step``: itself, unless it is a schedule."""
        return self


def names() -> list[str]:
    """All objectives, by name (modules of this folder that do not begin with an underscore)."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def kind(name: str) -> type[Objective]:
    """The class of the objective called ``name``; its fields are the options.

    Raises:
        ValueError: no such objective; the nearest known one is suggested.
    """
    if name not in names():
        raise ValueError(f"no objective {name!r}; {suggest(name, names())}")
    module = importlib.import_module(f".{name}", __name__)
    (cls,) = (
        found
        for found in vars(module).values()
        if isinstance(found, type) and found.__module__ == module.__name__ and issubclass(found, Objective)
    )
    return cls


def get(name: str, tokenizer: KosmosProcessor | PreTrainedTokenizerFast, **options: Any) -> Objective:
    """The objective called ``name`` with its options.

    Args:
        tokenizer: of KOSMOS's layout, alone for documents of text; a processor knows images and spans too.

    Raises:
        ValueError: no such objective, or an option that it does not have; the nearest known one is suggested.
    """
    made = settings.from_dict(kind(name), options, f"objective {name!r}: ")
    made.prepare(_processor(tokenizer))
    return made


def from_settings(given: Mapping[str, Any] | str, processor: KosmosProcessor) -> Objective:
    """The objective that ``{name: …, option: …}`` (or a bare name) of a YAML describes.

    Raises:
        ValueError: no ``name``, or anything that :func:`get` refuses.
    """
    options = {"name": given} if isinstance(given, str) else dict(given)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(f"an objective needs a name, got {given}; {suggest('', names())}")
    return get(name, processor, **options)


def filler(name: str) -> Fill:
    """How a model of objective ``name`` is asked for a blank.

    Raises:
        ValueError: no such objective, or one that has no single form of a blank (a mixture, a schedule, an encoder's).
    """
    if name not in names():
        raise ValueError(f"no objective {name!r}; {suggest(name, names())}")
    fill = getattr(importlib.import_module(f".{name}", __name__), "fill", None)
    if fill is None:
        raise ValueError(f"objective {name!r} has no form of its own for a blank; name one of its parts, or 'causal'")
    return fill


def special_tokens(objectives: Sequence[Mapping[str, Any] | str]) -> list[str]:
    """All special tokens that these objectives need beyond KOSMOS's own, for ``train_tokenizer(extra_tokens=…)``."""
    found: list[str] = []
    for given in objectives:
        options = {"name": given} if isinstance(given, str) else given
        name = options.get("name")
        if name not in names():
            raise ValueError(f"no objective {name!r}; {suggest(str(name), names())}")
        module = importlib.import_module(f".{name}", __name__)
        tokens = module.tokens(options) if hasattr(module, "tokens") else getattr(module, "TOKENS", ())
        nested = [part for value in options.values() if isinstance(value, list) for part in value]
        found += [token for token in (*tokens, *special_tokens(nested)) if token not in found]
    return found


def ids_of(tokens: Sequence[str], processor: KosmosProcessor, objective: str) -> list[int]:
    """Ids of special tokens.

    Raises:
        ValueError: the tokenizer does not have them all; names the first that is missing, and the way to get it.
    """
    known = processor.tokenizer.get_added_vocab()
    missing = [token for token in tokens if token not in known]
    if missing:
        raise ValueError(
            f"objective {objective!r} needs {len(missing)} special tokens that the tokenizer lacks (first: "
            f"{missing[0]!r}); make the tokenizer with objectives=[{objective}], or give them as extra_tokens "
            f"(kosmos_data.objectives.special_tokens lists them)"
        )
    return [known[token] for token in tokens]


def _processor(tokenizer: KosmosProcessor | PreTrainedTokenizerFast) -> KosmosProcessor:
    from kosmos.image_processing_kosmos import KosmosImageProcessor
    from kosmos.processing_kosmos import KosmosProcessor

    return tokenizer if isinstance(tokenizer, KosmosProcessor) else KosmosProcessor(KosmosImageProcessor(), tokenizer)
