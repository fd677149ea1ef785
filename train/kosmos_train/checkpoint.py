"""Checkpoints that are whole or not there: ``checkpoints/step-000100/`` is a Hugging Face folder plus ``trainer/``.

    step-000100/
        config.json, model.safetensors, tokenizer and processor files    what from_pretrained reads; a run of tuning has
                                                                          its adapter instead (kosmos/tuning/storage.py)
        README.md                                                         the model card (kosmos/model_card.py)
        trainer/optimizer-00000-of-00002.safetensors …                    master weights and moments, one file a rank
        trainer/state.json                                                step, loader state, guard, frozen fingerprints
        trainer/manifest.json                                             every file with its size, written last

saving.py writes them; here they are found and read. Optimiser state is stored as named fragments of whole parameters
(fragments.py), so another number of processes or another ZeRO stage can go on from it.

No pickle is written or read: safetensors and JSON only. Dropout needs no saved state (engine.seed_everything).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

FORMAT = 1


def step_name(step: int) -> str:
    """Folder name of a step's checkpoint."""
    return f"step-{step:06d}"


def find_latest(folder: Path) -> Path | None:
    """The newest whole checkpoint under ``folder``, or None; anything incomplete is passed over."""
    return next((path for path in reversed(by_step(folder)) if is_complete(path)), None)


def is_complete(checkpoint: Path) -> bool:
    """True if every file of the manifest is there in full size."""
    manifest = checkpoint / "trainer" / "manifest.json"
    if not manifest.is_file():
        return False
    try:
        sizes = _read_json(manifest)
    except ValueError:  # damaged, so the checkpoint is
        return False
    return all((checkpoint / name).is_file() and (checkpoint / name).stat().st_size == sizes[name] for name in sizes)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The trainer state of a checkpoint.

    Raises:
        ValueError: not a checkpoint of this trainer.
    """
    path = checkpoint / "trainer" / "state.json"
    if not path.is_file():
        raise ValueError(f"{checkpoint} is not a training checkpoint: {path} is missing")
    state = _read_json(path)
    if state.get("format") != FORMAT:
        raise ValueError(f"{checkpoint}: trainer format {state.get('format')}, this version reads {FORMAT}")
    return state


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it holds a {type(found).__name__}")
    return found


def fingerprint(model: torch.nn.Module) -> dict[str, str]:
    """A hash of every frozen parameter and saved buffer; taken before DeepSpeed partitions them."""
    tensors: dict[str, torch.Tensor] = {
        name: value for name, value in model.named_parameters() if not value.requires_grad
    }
    saved = model.state_dict().keys()
    tensors |= {name: value for name, value in model.named_buffers() if name in saved}
    return {name: _hash(value) for name, value in tensors.items()}


def check_fingerprint(expected: dict[str, str], model: torch.nn.Module) -> None:
    """Compare the frozen weights with those of the checkpoint.

    Raises:
        ValueError: naming the first that differs.
    """
    found = fingerprint(model)
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        raise ValueError(
            f"{len(wrong)} frozen tensors differ from the checkpoint's, first {wrong[0]}; "
            "they must not change within a run (did model.freeze or the vision weights change?)"
        )


def _hash(value: torch.Tensor) -> str:
    raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(raw.tobytes(), digest_size=8).hexdigest()


def by_step(folder: Path) -> list[Path]:
    """What is called like a checkpoint, oldest first; somebody's ``step-000100-copy`` is left alone."""
    named = [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal()]
    return sorted(named, key=lambda path: int(path.name.removeprefix("step-")))
