"""What runs of a study or a claim read: corpus and vocabulary, made by their recipes where they are missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress

from kosmos import settings
from kosmos.atomic import whole_folder
from kosmos_data import recipes
from kosmos_data.index import INDEX_NAME

from ..named_configs import find_config
from ..parts.tokenizer import TokenizerConfig, make_processor


def make_corpus(recipe: str | None, corpus: str, shards: Sequence[str], base: str, progress: Progress) -> None:
    """Make a corpus by its recipe, unless all its shards are there.

    Args:
        recipe: its name; None: the corpus is the user's own.
        corpus: the folder that it fills.
        shards: folders that runs read.
        base: the YAML that names them.

    Raises:
        ValueError: the folder is there, but not all shards.
    """
    if not recipe or all((Path(path) / INDEX_NAME).is_file() for path in shards):
        return
    if Path(corpus).exists():
        raise ValueError(f"{corpus} is there, but not all of {', '.join(shards)}; correct {base} or move it away")
    with whole_folder(Path(corpus)) as partial:
        recipes.make(recipe, partial, progress=progress)


def make_vocabulary(
    tokenizer: str | None, processor: str | None, progress: Progress, changes: Mapping[str, Any] | None = None
) -> None:
    """Make the processor of a run by the YAML ``tokenizer`` with ``changes`` of its settings, unless it is there."""
    if tokenizer and processor and not Path(processor).is_dir():
        values = settings.read_yaml(find_config(tokenizer)) | dict(changes or {})
        config = settings.from_dict(TokenizerConfig, values, f"{tokenizer}: ")
        with whole_folder(Path(processor)) as partial:
            make_processor(config, partial, progress)
