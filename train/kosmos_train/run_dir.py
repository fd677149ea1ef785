"""The run directory: everything a run leaves behind, and nothing outside it.

config.yaml  environment.json  metrics.jsonl  samples.jsonl  checkpoints/step-000100/  checkpoints/latest
eval/step-000100/
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch

from kosmos import settings
from kosmos.atomic import write_atomically
from kosmos.doctor import commit, installed
from kosmos.read_json import parse_json
from kosmos_data.config import FREE_AT_RESUME

from .config import TrainConfig
from .distributed import World

PACKAGES = ("kosmos-metalm", "torch", "deepspeed", "transformers", "open_clip_torch", "timm", "webdataset", "numpy")
# Settings that may differ between a run and its resumption: they change speed or logging, not the numbers.
FREE = (
    *("checkpoint", "samples", "eval", "guard", "log"),
    *("engine.zero_stage", "engine.offload_optimizer", "engine.timeout_minutes", "engine.deepspeed"),
    *(f"data.{name}" for name in FREE_AT_RESUME),
)


class RunDir:
    """Paths of one run, and its opening."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.config = self.path / "config.yaml"
        self.environment = self.path / "environment.json"
        self.metrics = self.path / "metrics.jsonl"
        self.samples = self.path / "samples.jsonl"
        self.evaluation = self.path / "eval"
        self._held: int | None = None

    def open(self, config: TrainConfig, resume: bool, world: World) -> None:
        """Create the folder, or check that it may be continued, and write the resolved config.

        Raises:
            ValueError: the folder holds a run and ``resume`` is off, or the config contradicts the run's.
            OSError: the folder cannot be written.
        """
        world.attempt(f"opening {self.path}", lambda: self._open(config, resume) if world.is_main else None)

    def check(self, config: TrainConfig, resume: bool) -> None:
        """Refuse what :meth:`open` would, before anything is started for the run; nobody else may open it then."""
        there = next((place for place in (self.path, *self.path.parents) if place.exists()), Path())
        if not there.is_dir():
            if there != self.path:
                raise NotADirectoryError(f"run={self.path}: {there} is a file; name a folder, which is made")
            raise ValueError(f"run={self.path} is a file; name a folder, which is made")
        if self.path.is_dir():
            self._hold()
        if self.metrics.exists() and self.metrics.stat().st_size:  # a start that failed before its first step is no run
            if not resume:
                raise ValueError(f"{self.path} already holds a run; add --resume to go on, or choose another run=DIR")
            self.check_same(config)
            return
        for name in ("config.json", "adapter_config.json"):  # chat and eval would read it in place of what is trained
            if (self.path / name).is_file():
                raise ValueError(f"run={self.path} is a checkpoint ({name}); name a folder of its own for the run")

    def _open(self, config: TrainConfig, resume: bool) -> None:
        self.check(config, resume)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self._hold()
        settings.write_yaml(config, self.config)

    def _hold(self) -> None:
        """Refuse a second process that would write here; the lock is the folder's, and ends with this process.

        File systems without locks let both go on, as before.
        """
        if self._held is not None:
            return
        held = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(held)
            raise ValueError(f"{self.path}: another process trains in this folder; wait for it, or end it") from None
        except OSError:
            os.close(held)
            return
        self._held = held

    def close(self) -> None:
        """Let others write here."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def check_same(self, config: TrainConfig) -> None:
        """Refuse to go on with the run here under settings that would make it another one; ValueError names the first.

        More steps than before are the same run where the rate does not depend on their number.
        """
        before = settings.load(TrainConfig, self.config)  # settings that are newer than the run get their defaults
        if config.steps > before.steps and config.optim.schedule in ("constant", "inverse_sqrt"):
            before.steps = config.steps
        _check_same(settings.to_dict(before), settings.to_dict(config), self.path)

    def record_launch(
        self, step: int, world: World, data: dict[str, Any], origins: dict[str, str] | None = None
    ) -> None:
        """Append to ``environment.json`` what this start runs on.

        Args:
            data: describes the corpora.
            origins: folder of each published part that the run began from (``decoder`` …); of one of the hub it is
                named by its commit.
        """
        launches = parse_json(self.environment.read_text()) if self.environment.exists() else []
        launches.append(
            {
                "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "from_step": step,
                "command": sys.argv,
                "commit": commit(),
                "python": platform.python_version(),
                "packages": {name: found for name in PACKAGES if (found := installed(name))},
                "host": platform.node(),
                "platform": platform.platform(),
                "processes": world.size,
                "device": torch.cuda.get_device_name() if world.device.type == "cuda" else "cpu",
                "threads": torch.get_num_threads(),
                "data": data,
                **(origins or {}),
            }
        )
        write_atomically(self.environment, json.dumps(launches, indent=1))


def _check_same(old: dict[str, Any], new: dict[str, Any], path: Path) -> None:
    """Refuse to continue a run under settings that would make it another one."""
    before, now = _fixed(old), _fixed(new)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            way = "resume with the same settings, or start another run from its checkpoint (model.checkpoint=…)"
            if key == "steps":
                way += "; only with optim.schedule=constant or inverse_sqrt may a run become longer: its rate stays"
            raise ValueError(f"{path} was started with {key}={before.get(key)}, now it is {now.get(key)}; {way}")


def _fixed(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """The settings that make a run what it is, as ``a.b`` → JSON text."""
    fixed: dict[str, str] = {}
    for key, value in values.items():
        if prefix + key in FREE:
            continue
        if prefix + key == "data.sources":  # where a corpus lies is free: the loader compares its fingerprint
            value = [{name: part for name, part in source.items() if name != "shards"} for source in value]
        if isinstance(value, dict):
            fixed.update(_fixed(value, f"{prefix}{key}."))
        else:
            fixed[prefix + key] = json.dumps(value)
    return fixed


def default_threads() -> None:
    """One thread a core shared by the processes of this host, unless the user has set OMP_NUM_THREADS."""
    if "OMP_NUM_THREADS" not in os.environ:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local))
