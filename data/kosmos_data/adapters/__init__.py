"""Other people's formats → documents: ``kosmos data import FORMAT SOURCE --out DIR``.

Each adapter is a generator function of (source, images, tally). ``source`` is the published file or folder,
``images`` the folder of picture files where the format keeps them apart, and ``tally`` counts records that cannot be
used by reason, as the loader does: a record never ends an import. One whose texts may stand in a field of any name
also takes ``field``, one of dialogues ``turns``. Adding a format is one function and one line of :data:`FORMATS`.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from kosmos.addresses import refuse_address
from kosmos.suggest import suggest

from .. import errors
from ..document import Document
from ..errors import Tally

if TYPE_CHECKING:
    from ..shards import ShardInfo

Adapter: TypeAlias = Callable[..., Iterator[Document]]

FORMATS = {
    "folder": "folders:folder",
    "csv": "folders:csv",
    "imagefolder": "folders:imagefolder",
    "img2dataset": "pairs:img2dataset",
    "coco-captions": "pairs:coco_captions",
    "karpathy": "pairs:karpathy",
    "grit": "grounded:grit",
    "vqav2": "questions:vqav2",
    "llava": "dialogues:sharegpt",
    "messages": "dialogues:messages",
    "sharegpt": "dialogues:sharegpt",
    "cauldron": "dialogues:cauldron",
    "alpaca": "dialogues:alpaca",
    "flan": "dialogues:flan",
    "parquet": "dialogues:parquet",
    "obelics": "interleaved:obelics",
    "mmc4": "interleaved:mmc4",
    "text": "text:text",
    "reviews": "reviews:reviews",
    "convai2": "personas:convai2",
    "personachat": "personas:personachat",
    "jsonl": "personas:jsonl",
}
"""Format name → ``module:function`` in this folder."""


def get(name: str) -> Adapter:
    """The adapter of a format; ValueError with a suggestion if there is none."""
    if name not in FORMATS:
        raise ValueError(f"no format {name!r}; {suggest(name, FORMATS)}")
    module, function = FORMATS[name].split(":")
    return getattr(importlib.import_module(f".{module}", __name__), function)


def convert(
    name: str,
    source: str | Path,
    out: str | Path,
    images: str | Path | None = None,
    max_documents: int = 10_000,
    field: str | None = None,
    turns: int | None = None,
) -> tuple[list[ShardInfo], Tally]:
    """Write the documents of ``source`` as shards below ``out``; return the shards and what was skipped.

    Args:
        name: one of :data:`FORMATS`.
        source: file or folder in that format.
        out: folder for the shards; new or empty.
        images: folder of the picture files; the source's own folder by default.
        max_documents: documents per shard.
        field: name of the field or column that holds the text, for the formats in which it may have any name.
        turns: most questions of a document, for formats of dialogues: a longer dialogue becomes several documents.

    Raises:
        FileNotFoundError: the source does not exist.
        ValueError: unknown format, an option that the format does not take, or the source holds not one usable record.
    """
    from ..shards import ShardWriter
    from ._files import what_is_in

    for given in (source, images) if images is not None else (source,):
        refuse_address(given)
    adapter, source = get(name), Path(source)
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    options = {option: value for option, value in (("field", field), ("turns", turns)) if value is not None}
    takes = inspect.signature(adapter).parameters
    if "field" in options and "field" not in takes:
        raise ValueError(f"format {name!r} has its texts in one place, so it takes no field ({field!r})")
    if "turns" in options and "turns" not in takes:
        raise ValueError(f"format {name!r} has no dialogues to cut, so it takes no turns ({turns})")
    folder = Path(images) if images is not None else source if source.is_dir() else source.parent
    tally = Tally()
    with ShardWriter(out, max_documents) as writer:
        for document in adapter(source, folder, tally, **options):
            try:
                writer.write(document)
            except UnicodeEncodeError as error:  # a lone surrogate, which JSON may hold and a shard may not
                is_byte = "\udc80" <= error.object[error.start] <= "\udcff"  # put there for what is not UTF-8
                tally.count(errors.ENCODING if is_byte else errors.JSON, document.key)
        if not writer.documents:
            left = ", ".join(f"{number} × {reason}" for reason, number in tally.items())
            left = left or f"none{what_is_in(source)}"
            first = f" (first: {next(iter(tally.examples.values()))[0]})" if tally else ""
            raise ValueError(f"{source}: no usable record in format {name!r}; skipped: {left}{first}")
    return writer.shards, tally
