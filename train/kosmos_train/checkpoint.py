"""Checkpoints that are whole or not there: ``checkpoints/step-000100/`` is a Hugging Face folder plus ``trainer/``.

    step-000100/
        config.json, model.safetensors, tokenizer and processor files    what from_pretrained reads; a run of tuning has
                                                                          its adapter instead (kosmos/tuning/storage.py)
        README.md                                                         the model card (kosmos/model_card.py)
        trainer/optimizer-00000-of-00002.safetensors …                    master weights and moments, one file a rank
        trainer/state.json                                                step, loader state, guard, frozen fingerprints
        trainer/manifest.json                                             every file with its size, written last

Everything is written into ``.step-000100.partial``, flushed to disk, and renamed; ``latest`` names the newest one. A
kill at any moment leaves the older checkpoints as they were. Optimiser state is stored as named fragments of whole
parameters (fragments.py), so another number of processes or another ZeRO stage can go on from it.

No pickle is written or read: safetensors and JSON only. Dropout needs no saved state (engine.seed_everything).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from kosmos.atomic import open_to_umask
from kosmos.model_card import model_card
from kosmos.tuning import save_adapter

from .engine import Engine
from .fragments import get_step, local_tensors

FORMAT = 1


def step_name(step: int) -> str:
    """Folder name of a step's checkpoint."""
    return f"step-{step:06d}"


def save(folder: Path, step: int, engine: Engine, processor: Any, state: dict[str, Any], keep: int) -> Path:
    """Write the checkpoint of ``step`` under ``folder`` on all ranks together and delete all but the newest ``keep``.

    Args:
        state: JSON-able trainer state, equal on all ranks or only meaningful on rank 0.

    Raises:
        OSError: on every rank if one cannot write (disk full, no permission); older checkpoints are untouched.
    """
    world = engine.world
    final, partial = folder / step_name(step), folder / f".{step_name(step)}.partial"
    weights = engine.full_weights(world.is_main, learnt_only=engine.config.tuning is not None)
    phases = (
        lambda: _make_empty(partial) if world.is_main else None,
        lambda: _write_parts(partial, step, engine, processor, weights, state),
        lambda: _publish(partial, final, keep) if world.is_main else None,
    )
    for phase in phases:
        error: Exception | None = None
        try:
            phase()
        except Exception as caught:  # told to all ranks, then raised on each
            error = _explain(caught, final)
        try:
            world.agree(error, f"writing {final}")
        except Exception:
            if world.is_main:
                shutil.rmtree(partial, ignore_errors=True)
            raise
    return final


def find_latest(folder: Path) -> Path | None:
    """The newest whole checkpoint under ``folder``, or None; anything incomplete is passed over."""
    return next((path for path in reversed(_by_step(folder)) if is_complete(path)), None)


def is_complete(checkpoint: Path) -> bool:
    """True if every file of the manifest is there in full size."""
    manifest = checkpoint / "trainer" / "manifest.json"
    if not manifest.is_file():
        return False
    sizes = json.loads(manifest.read_text())
    return all((checkpoint / name).is_file() and (checkpoint / name).stat().st_size == sizes[name] for name in sizes)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The trainer state of a checkpoint.

    Raises:
        ValueError: not a checkpoint of this trainer.
    """
    path = checkpoint / "trainer" / "state.json"
    if not path.is_file():
        raise ValueError(f"{checkpoint} is not a training checkpoint: {path} is missing")
    state = json.loads(path.read_text())
    if state.get("format") != FORMAT:
        raise ValueError(f"{checkpoint}: trainer format {state.get('format')}, this version reads {FORMAT}")
    return state


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


def _write_parts(
    partial: Path, step: int, engine: Engine, processor: Any, weights: dict[str, torch.Tensor], state: dict[str, Any]
) -> None:
    """This rank's file of fragments; on rank 0 also the Hugging Face folder and the trainer state."""
    world = engine.world
    tensors = local_tensors(engine.deepspeed)
    if tensors:
        path = partial / "trainer" / f"optimizer-{world.rank:05d}-of-{world.size:05d}.safetensors"
        save_file(tensors, path)
        _sync(path)
    if world.is_main:
        if engine.config.tuning is not None:
            save_adapter(engine.model, partial, weights)
        else:
            engine.model.save_pretrained(partial, state_dict=weights)
        processor.save_pretrained(partial)
        complete = {"format": FORMAT, "step": step, "adam_step": get_step(engine.deepspeed), "world_size": world.size}
        (partial / "trainer" / "state.json").write_text(json.dumps({**complete, **state}))
        (partial / "README.md").write_text(model_card(partial, partial.resolve().parents[1].name), encoding="utf-8")


def _publish(partial: Path, final: Path, keep: int) -> None:
    """Manifest, flush, rename, ``latest``, and only then delete what is too old."""
    open_to_umask(partial)
    files = [path for path in sorted(partial.rglob("*")) if path.is_file()]
    sizes = {str(path.relative_to(partial)): path.stat().st_size for path in files}
    manifest = partial / "trainer" / "manifest.json"
    manifest.write_text(json.dumps(sizes, indent=1))
    for path in [*files, manifest, partial / "trainer", partial]:
        _sync(path)
    if final.exists():  # incomplete, or it would have been the one to resume from
        _remove(final)
    partial.rename(final)
    _sync(final.parent)
    pointer = final.parent / ".latest.partial"
    pointer.write_text(final.name + "\n")
    _sync(pointer)
    pointer.rename(final.parent / "latest")
    for old in _by_step(final.parent)[:-keep]:
        _remove(old)


def _remove(checkpoint: Path) -> None:
    """Delete under another name, so that a kill in the middle leaves nothing that looks like a checkpoint."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.removed")
    checkpoint.rename(hidden)
    shutil.rmtree(hidden)


def _by_step(folder: Path) -> list[Path]:
    """What is called like a checkpoint, oldest first; somebody's ``step-000100-copy`` is left alone."""
    named = [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal()]
    return sorted(named, key=lambda path: int(path.name.removeprefix("step-")))


def _make_empty(partial: Path) -> None:
    for leftover in partial.parent.glob(".step-*"):  # of a kill
        shutil.rmtree(leftover)
    (partial / "trainer").mkdir(parents=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain(error: Exception, final: Path) -> Exception:
    """Say what became of the checkpoint; safetensors reports a full disk as its own error type."""
    last = find_latest(final.parent) if final.parent.is_dir() else None
    kept = f"the last whole one is {last}" if last else "there is none yet"
    if isinstance(error, OSError) or "No space left" in str(error):
        return OSError(f"could not write checkpoint {final}: {error}; {kept}")
    return error
