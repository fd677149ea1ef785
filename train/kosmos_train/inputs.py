"""What a run reads and is not there yet, all of it at once, each with the command that makes it.

On a fresh clone nothing is there: who is told of one thing a start gives up at the third.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kosmos.hub import is_name
from kosmos.loading import find_model
from kosmos.modalities import MODALITIES
from kosmos.plain import pasted
from kosmos.processing_kosmos import load_processor
from kosmos_data.index import read_index

from .config import WEIGHTS

if TYPE_CHECKING:
    from .config import TrainConfig


def missing_inputs(config: TrainConfig, resumed: bool = False) -> dict[str, str]:
    """Return the local paths that ``config`` names and that do not exist → what each is, and how one gets it.

    A path that exists is somebody else's question: whether it holds what it should, its reader says.

    Args:
        resumed: the run has a checkpoint, which holds the whole model; what it began from may be gone.
    """
    found = {}
    sources = [*config.data.sources, *(config.eval.data.sources if config.eval.data else [])]
    for source in sources:
        if _is_missing(source.shards):
            found[source.shards] = f"shards of {source.name}: {_make_shards(source.shards)}"
    if config.processor is not None and _is_missing(config.processor):
        found[config.processor] = f"processor: {_make_processor(config)}"
    # an adapter's checkpoint holds what it learnt, not its base; a processor may be the base's too
    if resumed and config.tuning is None and config.processor is not None:
        return found
    start = config.model.checkpoint
    if start is not None and not is_name(start) and _is_missing(start):
        found[start] = "model.checkpoint: a run or checkpoint to start from, as kosmos train leaves one"
    for name, where in config.model.named_weights.items():
        if not is_name(where) and _is_missing(where):
            found[where] = f"model.{WEIGHTS.get(name, f'encoder_weights.{name}')}: {_make_weights(name, where)}"
    return found


def unfit_inputs(config: TrainConfig) -> list[str]:
    """Return what the readers say of local inputs that are there and are something else: tars without an index, say."""
    sources = [*config.data.sources, *(config.eval.data.sources if config.eval.data else [])]
    readers: list[tuple[str, Callable[[str], object]]] = [(source.shards, read_index) for source in sources]
    if config.processor is not None:
        readers.append((config.processor, load_processor))
    if config.model.checkpoint is not None and not is_name(config.model.checkpoint):
        readers.append((config.model.checkpoint, find_model))
    said = []
    for path, read in readers:
        try:
            if "://" not in path and Path(path).exists():
                read(path)
        except (OSError, ValueError) as error:
            said.append(str(error))
    return list(dict.fromkeys(said))


def check_inputs(config: TrainConfig, resumed: bool = False, unfit: Sequence[str] = ()) -> None:
    """Raise FileNotFoundError that names all that is missing, and what else was found to be ``unfit``."""
    missing = missing_inputs(config, resumed)
    listed = [*(f"{path} – {what}" for path, what in missing.items()), *unfit]
    if not listed:
        return
    one = f"not there: {listed[0]}" if missing else listed[0]
    numbered = "; ".join(f"({number}) {line}" for number, line in enumerate(listed, 1))
    fault = "are not there or something else" if unfit else "are not there"
    raise FileNotFoundError(f"{len(listed)} inputs {fault}: {numbered}" if listed[1:] else one)


def _is_missing(path: str) -> bool:
    return not path.startswith("package:") and "://" not in path and not Path(path).exists()


def _make_shards(folder: str) -> str:
    if Path(folder).parts[:2] == ("runs", "demo"):
        return "kosmos demo"
    return f"kosmos data import FORMAT SOURCE --out {pasted(folder)}"


def _make_processor(config: TrainConfig) -> str:
    shards = ", ".join(dict.fromkeys(source.shards for source in config.data.sources))
    return f"kosmos tokenizer tokenizer {pasted(f'run={config.processor}')} {pasted(f'shards=[{shards}]')}"


def _make_weights(name: str, where: str) -> str:
    if name == "image":
        return f"kosmos vision CONFIG run={where}; or open_clip's from the hub: model.vision_weights=ViT-B-32/openai"
    if MODALITIES[name].tokenizer:  # it reads text
        return f"kosmos encoder CONFIG run={where}"
    return "download it there, or give its name on the hub"
