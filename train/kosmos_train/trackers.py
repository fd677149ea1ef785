"""Optional back ends for scalars; each writes under the run folder and needs its own package.

A resumed run goes on in TensorBoard, without the steps behind the checkpoint, and in trackio; W&B gets a run of its own
for each start. After a rewind W&B keeps the first numbers of the steps that are made again; ``metrics.jsonl`` has the
last ones.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any, Protocol

from kosmos.extras import install


class Tracker(Protocol):
    """An extra place for scalars."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record the values of a step."""

    def close(self) -> None:
        """Flush."""


class TensorBoard:
    """Event files in ``RUN/tensorboard``."""

    def __init__(self, folder: Path, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1 if start_step else None)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record the values of a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush."""
        self._writer.close()


class WandbLike:
    """W&B in offline mode, or trackio, whose API is the same."""

    def __init__(self, module: Any, folder: Path, run_name: str, **options: Any) -> None:
        self._module = module
        module.init(project=folder.resolve().parent.name or "kosmos", name=run_name, **options)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record the values of a step."""
        self._module.log(values, step=step)

    def close(self) -> None:
        """Flush."""
        self._module.finish()


def require(name: str) -> None:
    """Check that the package of a back end, which has the same name, is there.

    Raises:
        ValueError: it is missing.
    """
    if importlib.util.find_spec(name) is None:
        raise ValueError(f"log.tracking: {name} needs a package that is missing; {install('tracking')}")


def open_tracker(name: str, folder: Path, run_name: str, start_step: int) -> Tracker:
    """Open one back end by name; ``start_step`` is the last step that was done before.

    Raises:
        ValueError: its package is missing, or there is no such back end.
    """
    require(name)
    if name == "tensorboard":
        return TensorBoard(folder, start_step)
    if name == "trackio":
        os.environ.setdefault("TRACKIO_DIR", str(folder.resolve() / "trackio"))
        import trackio

        return WandbLike(trackio, folder, run_name, embed=False, resume="allow")
    if name == "wandb":
        import wandb

        options = {"dir": str(folder), "mode": "offline", "settings": wandb.Settings(quiet=True)}
        return WandbLike(wandb, folder, run_name, **options)  # `wandb sync RUN/wandb/offline-*` sends it
    raise ValueError(f"log.tracking: unknown back end {name!r}; choose tensorboard, trackio or wandb")
