"""Other people's formats → documents: ``kosmos data import FORMAT SOURCE --out DIR``.

Each adapter is a generator function of (source, images, skipped). ``source`` is the published file or folder,
``images`` the folder of picture files where the format keeps them apart, and ``skipped`` counts records that cannot be
used by reason, as the loader does. Adding a format is one function and one line of :data:`FORMATS`.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

from kosmos.suggest import suggest

from .. import errors
from ..document import Document
from ..shards import ShardInfo, ShardWriter

Adapter: TypeAlias = Callable[[Path, Path, Counter[str]], Iterator[Document]]

FORMATS = {
    "img2dataset": "pairs:img2dataset",
    "coco-captions": "pairs:coco_captions",
    "karpathy": "pairs:karpathy",
    "vqav2": "questions:vqav2",
    "llava": "questions:llava",
    "obelics": "interleaved:obelics",
    "mmc4": "interleaved:mmc4",
    "text": "text:text",
}
"""Format name → ``module:function`` in this folder."""


def get(name: str) -> Adapter:
    """The adapter of a format; ValueError with a suggestion if there is none."""
    if name not in FORMATS:
        raise ValueError(f"no format {name!r}; {suggest(name, FORMATS)}")
    module, function = FORMATS[name].split(":")
    return getattr(importlib.import_module(f".{module}", __name__), function)


def convert(
    name: str, source: str | Path, out: str | Path, images: str | Path | None = None, max_documents: int = 10_000
) -> tuple[list[ShardInfo], Counter[str]]:
    """Write the documents of ``source`` as shards below ``out``; return the shards and what was skipped.

    Args:
        name: one of :data:`FORMATS`.
        source: file or folder in that format.
        out: folder for the shards; new or empty.
        images: folder of the picture files; the source's own folder by default.
        max_documents: documents per shard.

    Raises:
        FileNotFoundError: the source does not exist.
        ValueError: unknown format, or the source holds not one usable record.
    """
    adapter, source = get(name), Path(source)
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    folder = Path(images) if images is not None else source if source.is_dir() else source.parent
    skipped: Counter[str] = Counter()
    with ShardWriter(out, max_documents) as writer:
        try:
            for document in adapter(source, folder, skipped):
                try:
                    writer.write(document)
                except UnicodeEncodeError:  # a lone surrogate, which JSON may hold and a shard may not
                    skipped[errors.JSON] += 1
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"{source} is not in the format {name!r}: {error}") from error
        if not writer.documents:
            raise ValueError(f"{source}: no usable record in format {name!r}; skipped: {dict(skipped) or 'none'}")
    return writer.shards, skipped
