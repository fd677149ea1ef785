"""An encoder's weights from a local file or folder, in the layouts that open_clip, timm and transformers publish.

A file may hold more than the encoder (a whole CLIP, a pooler, a classifier), and never less; nothing is unpickled.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import torch
from torch import Tensor

from .encoders import Encoder

log = logging.getLogger("kosmos")
PREFIXES = (
    *("", "visual.", "vision_model.", "vision_model.model.", "bert.", "roberta.", "model.", "module.visual."),
    *("encoder.", "model.encoder.", "audio_spectrogram_transformer.", "wav2vec2.", "hubert."),
)
WEIGHT_FILES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)


def load_encoder_weights(encoder: Encoder, path: str | Path) -> None:
    """Load a vision tower's or text encoder's weights from a local file or folder, strictly.

    Accepts safetensors, or ``torch.save`` files read with ``weights_only=True``, of: an open_clip model (whole or its
    visual tower), a timm state dict, a transformers CLIP or BERT-like checkpoint (whole or the tower). A file whose
    names are all different is matched by order if every shape agrees, with a warning.

    Raises:
        FileNotFoundError: no weights at ``path``.
        ValueError: keys are missing, blocks are left over, or shapes differ; names both sides.
    """
    file = find_weights(Path(path))
    state = read_state(file)
    expected = encoder.encoder.state_dict()
    best = max((_strip(state, prefix) for prefix in PREFIXES), key=lambda kept: len(kept.keys() & expected.keys()))
    missing = sorted(expected.keys() - best.keys())
    if len(missing) == len(expected) and _same_order(state, expected):
        # another author's names for the same network, for instance a port of timm's EfficientNets
        best, missing = dict(zip(expected, state.values(), strict=False)), []
        log.warning("%s: other tensor names than the encoder's; matched by order and shape", file)
    if missing:
        raise ValueError(
            f"{file} does not fit the encoder: {len(missing)} of its {len(expected)} tensors are missing "
            f"(first: {missing[:3]}); the file holds {len(state)} (first: {sorted(state)[:3]})"
        )
    kinds = {re.sub(r"\d+", "#", name) for name in expected}
    deeper = sorted(name for name in best.keys() - expected.keys() if re.sub(r"\d+", "#", name) in kinds)
    if deeper:
        raise ValueError(
            f"{file} holds more blocks than the encoder, which has {len(encoder.blocks())}: {len(deeper)} tensors are "
            f"left over (first: {deeper[:3]})"
        )
    for name, tensor in expected.items():
        if best[name].shape != tensor.shape:
            raise ValueError(f"{file}: {name} has shape {tuple(best[name].shape)}, the encoder {tuple(tensor.shape)}")
    encoder.encoder.load_state_dict({name: best[name] for name in expected})


def find_weights(path: Path) -> Path:
    """Return the weight file that ``path`` is or holds."""
    if path.is_file():
        return path
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(f"no weights at {path}: give a file, or a folder with one of {', '.join(WEIGHT_FILES)}")


def read_state(file: Path) -> dict[str, Tensor]:
    """Read a state dict without ever unpickling code."""
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    state = torch.load(file, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state)
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _same_order(state: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Whether the first tensors of ``state`` have the shapes of the encoder's, one by one (a classifier may follow)."""
    shapes = [tensor.shape for tensor in state.values()]
    return len(expected) > 1 and shapes[: len(expected)] == [tensor.shape for tensor in expected.values()]


def _strip(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
