"""``kosmos merge RUN --out DIR``: an ordinary checkpoint of a model and its LoRA or IA³."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..plain import pasted
from .methods import attachments
from .settings import PEFT_METHODS


def merge(model: Any, name: str) -> Any:
    """Write a loaded LoRA or IA³ into the model's own weights and take PEFT's layers away; returns the model.

    Raises:
        ValueError: a method that is no change of weights.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    from .storage import use

    method = attachments(model)[name].tuning.method
    if method not in PEFT_METHODS:
        raise ValueError(
            f"method {method} cannot be merged, it is more than a change of weights; use it as it is: "
            "kosmos chat BASE --adapter RUN"
        )
    use(model, name)
    wrapped = {key: module for key, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    for key, module in wrapped.items():
        module.merge(safe_merge=True, adapter_names=[name])
        parent, _, child = key.rpartition(".")
        setattr(model.get_submodule(parent), child, module.get_base_layer())
    for added in ("peft_config", "attached", "own_values", "own_rules"):
        if hasattr(model, added):
            delattr(model, added)
    return model


def main(argv: Sequence[str]) -> int:
    """The command ``kosmos merge``."""
    parser = argparse.ArgumentParser(
        prog="kosmos merge", description="Merge a LoRA or IA³ run with its base into an ordinary checkpoint folder."
    )
    parser.add_argument("adapter", help="a run of tuning: {method: lora}, or an adapter folder")
    parser.add_argument("--base", help="the model it was trained on, if that has moved (the adapter names it)")
    parser.add_argument("--out", required=True, type=Path, help="a new folder")
    arguments = parser.parse_args(list(argv))
    if arguments.out.exists() and any(arguments.out.iterdir()):
        raise ValueError(f"--out {arguments.out} is not empty; give a new folder")

    from ..atomic import whole_folder
    from ..loading import load, quiet_saving
    from ..model_card import model_card
    from .storage import find_adapter

    source = find_adapter(arguments.adapter)
    base = (arguments.base, [arguments.adapter]) if arguments.base else (arguments.adapter, [])
    model, processor = load(base[0], "cpu", adapters=base[1])
    merge(model, next(iter(attachments(model))))
    with whole_folder(arguments.out) as folder, quiet_saving():
        processor.save_pretrained(folder)
        model.save_pretrained(folder)
        card = model_card(folder, arguments.out.resolve().name, source)
        (folder / "README.md").write_text(card, encoding="utf-8")
    print(f"{arguments.out}: merged; kosmos chat {pasted(arguments.out)}")
    return 0
