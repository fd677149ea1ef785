"""Checkpoints are written while training goes on: the state is copied, and a thread of each rank writes the copy.

Everything goes into ``.step-000100.partial``, is flushed to disk, and takes its name when all ranks have written their
part; ``latest`` names the newest one. A kill at any moment leaves the older checkpoints as they were. The threads only
write files: what ranks have to tell each other, the training threads do, between two steps.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from kosmos.atomic import open_to_umask, writing
from kosmos.model_card import model_card
from kosmos.tuning import save_adapter

from .checkpoint import FORMAT, by_step, find_latest, step_name
from .distributed import World
from .engine import Engine
from .fragments import get_step, local_tensors

FRAGMENTS = "optimizer-*.safetensors"
PATIENCE = 10.0  # seconds that a run which ends by an error gives other ranks to write their part


class Saver:
    """Writes checkpoints under ``folder``, one at a time; every method but :meth:`close` is for all ranks together.

    Args:
        world: the ranks.
        folder: of all checkpoints.
        keep: the newest so many stay.
    """

    def __init__(self, world: World, folder: Path, keep: int) -> None:
        self.world, self.folder, self.keep = world, folder, keep
        self.seconds = 0.0
        """How long the last one took to write."""
        self._step: int | None = None
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._files = 0

    def start(self, step: int, engine: Engine, processor: Any, state: dict[str, Any]) -> None:
        """Copy the state after ``step`` and begin to write it; what is being written is finished first.

        Args:
            state: JSON-able trainer state, equal on all ranks or only meaningful on rank 0.

        Raises:
            OSError: on every rank if rank 0 cannot write, or the last checkpoint could not be written.
        """
        self.finish()
        self._step, self._error = step, None
        self._together(lambda: self._prepare(engine, processor, state) if self.world.is_main else None)
        tuning = engine.config.tuning is not None
        tensors = local_tensors(engine.deepspeed)
        weights = engine.full_weights(self.world.is_main, learnt_only=tuning)
        if tuning:  # small, and it looks at the base, which ZeRO-3 takes apart while training goes on
            self._together(lambda: save_adapter(engine.model, self._partial, weights) if self.world.is_main else None)
        model = engine.model if self.world.is_main and not tuning else None
        self._files = int(self.world.sum({"files": float(bool(tensors))})["files"])
        self._thread = threading.Thread(
            target=self._write, args=(tensors, model, weights), name="checkpoint", daemon=True
        )
        self._thread.start()

    def vote(self) -> float:
        """1 if this rank writes nothing any more; as much as all ranks together if it failed, so that all finish."""
        if self._thread is not None and self._thread.is_alive():
            return 0.0
        return float(self.world.size if self._error else 1)

    def due(self, votes: float) -> bool:
        """Whether a checkpoint is to be finished now, by the sum of all ranks' :meth:`vote`: written, or failed."""
        return self._thread is not None and votes >= self.world.size

    def finish(self) -> Path | None:
        """Wait until all ranks have written, and give the checkpoint its name; None if none is being written.

        Raises:
            OSError: on every rank if one could not write (disk full, no permission); older checkpoints are untouched.
        """
        if self._thread is None:
            return None
        self._thread.join()
        self._thread = None
        self._together(self._raise)
        self._together(lambda: self._publish() if self.world.is_main else None)
        return self._final

    def close(self) -> None:
        """End without asking other ranks, as some may be gone: what is being written becomes whole if all wrote it.

        After a second Ctrl-C nothing is waited for.
        """
        if self._thread is None or isinstance(sys.exc_info()[1], KeyboardInterrupt):
            return
        self._thread.join()
        self._thread, deadline = None, time.monotonic() + PATIENCE
        while self.world.is_main and self._error is None and time.monotonic() < deadline:
            if len(list((self._partial / "trainer").glob(FRAGMENTS))) == self._files:
                with suppress(OSError):  # what ended the run is the error to be told
                    self._publish()
                break
            time.sleep(0.05)

    @property
    def _final(self) -> Path:
        return self.folder / step_name(self._step or 0)

    @property
    def _partial(self) -> Path:
        return self.folder / f".{self._final.name}.partial"

    def _together(self, action: Callable[[], Any]) -> None:
        """Do one part on this rank; if it fails on any, all raise and nothing half is left."""
        error: Exception | None = None
        try:
            action()
        except Exception as caught:  # told to all ranks, then raised on each
            error = self._explain(caught)
        try:
            self.world.agree(error, f"writing {self._final}")
        except Exception:
            if self.world.is_main:
                shutil.rmtree(self._partial, ignore_errors=True)
            raise

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _prepare(self, engine: Engine, processor: Any, state: dict[str, Any]) -> None:
        """A new folder with what is small, or what training uses too: a tokenizer serves one thread at a time."""
        for leftover in self.folder.glob(".step-*"):  # of a kill
            shutil.rmtree(leftover)
        trainer = self._partial / "trainer"
        trainer.mkdir(parents=True)
        processor.save_pretrained(self._partial)
        size = engine.world.size
        complete = {"format": FORMAT, "step": self._step, "adam_step": get_step(engine.deepspeed), "world_size": size}
        (trainer / "state.json").write_text(json.dumps({**complete, **state}))

    def _write(self, tensors: dict[str, torch.Tensor], model: Any, weights: dict[str, torch.Tensor]) -> None:
        """In the thread: this rank's fragments; on rank 0 also the Hugging Face folder."""
        began, trainer = time.perf_counter(), self._partial / "trainer"
        try:
            if tensors:
                path = trainer / f"optimizer-{self.world.rank:05d}-of-{self.world.size:05d}.safetensors"
                unfinished = path.with_suffix(".partial")
                with writing(unfinished):
                    save_file(tensors, unfinished)
                _sync(unfinished)
                unfinished.rename(path)
            if model is not None:
                model.save_pretrained(self._partial, state_dict=weights)
            if self.world.is_main:
                for path in self._partial.rglob("*"):
                    if path.is_file() and path.parent != trainer:
                        _sync(path)
        except Exception as caught:  # raised by finish()
            self._error = caught
        self.seconds = time.perf_counter() - began

    def _publish(self) -> None:
        """Model card, manifest, flush, rename, ``latest``, and only then delete what is too old."""
        partial, final = self._partial, self._final
        card = partial / "README.md"
        card.write_text(model_card(partial, partial.resolve().parents[1].name), encoding="utf-8")
        open_to_umask(partial)
        files = [path for path in sorted(partial.rglob("*")) if path.is_file()]
        sizes = {str(path.relative_to(partial)): path.stat().st_size for path in files}
        manifest = partial / "trainer" / "manifest.json"
        manifest.write_text(json.dumps(sizes, indent=1))
        for path in [card, partial / "trainer" / "state.json", manifest, partial / "trainer", partial]:
            _sync(path)
        if final.exists():  # incomplete, or it would have been the one to resume from
            _remove(final)
        partial.rename(final)
        _sync(final.parent)
        pointer = final.parent / ".latest.partial"
        pointer.write_text(final.name + "\n")
        _sync(pointer)
        pointer.rename(final.parent / "latest")
        for old in by_step(final.parent)[: -self.keep]:
            _remove(old)

    def _explain(self, error: Exception) -> Exception:
        """Say what became of the checkpoint; safetensors reports a full disk as its own error type."""
        last = find_latest(self.folder) if self.folder.is_dir() else None
        kept = f"the last whole one is {last}" if last else "there is none yet"
        if isinstance(error, OSError) or "No space left" in str(error):
            return OSError(f"could not write checkpoint {self._final}: {error}; {kept}")
        return error


def _remove(checkpoint: Path) -> None:
    """Delete under another name, so that a kill in the middle leaves nothing that looks like a checkpoint."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.removed")
    checkpoint.rename(hidden)
    shutil.rmtree(hidden)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
