"""``kosmos data inspect``: look at documents as a person would, and at what an objective makes of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from kosmos.media import describe
from kosmos.plain import counted, escape, styled
from kosmos.segments import modality_name
from kosmos.settings import parse_yaml

from . import objectives
from .document import Document, Fused, Image, Persona, Text, files_of
from .errors import BadSample
from .example import Example
from .images import open_image
from .index import INDEX_NAME, is_remote
from .reader import Corpus

if TYPE_CHECKING:
    from kosmos.processing_kosmos import KosmosProcessor

_LONGEST_TEXT = 600


def corpora_below(path: str) -> list[Corpus]:
    """The corpus at ``path``, or all corpora in the folders directly below it.

    Raises:
        FileNotFoundError: there is none.
    """
    if path.lower().endswith(".tar"):
        path = str(Path(path).parent)
    if not is_remote(path) and not (Path(path) / INDEX_NAME).exists():
        found = [folder for folder in sorted(Path(path).glob("*")) if (folder / INDEX_NAME).exists()]
        if found:
            return [Corpus(folder) for folder in found]
    return [Corpus(path)]


def kinds(corpus: Corpus, look_at: int = 200) -> Iterator[tuple[str, Document]]:
    """One document of each kind among the first ``look_at``: text, one image, several images, with spans."""
    seen: set[str] = set()
    for index in range(min(look_at, len(corpus))):
        document = corpus[index]
        kind = kind_of(document)
        if kind not in seen:
            seen.add(kind)
            yield kind, document


def kind_of(document: Document) -> str:
    """``text``, ``pair`` (an image with a text), ``one image, several texts``, ``interleaved``, ``with text spans``.

    Of a persona, and of what further encoders read, its name: ``with audio``.
    """
    if any(isinstance(segment, Persona) for segment in document.segments):
        return "with a persona"
    kinds = [modality_name(segment) for segment in document.segments if not isinstance(segment, (Text, Image))]
    if kinds:
        from kosmos.modalities import MODALITIES  # it imports torch and transformers, eight seconds

        return f"with {MODALITIES[kinds[0]].plural or kinds[0]}"
    images = len(document.images)
    if images == 1:
        return "pair" if len(document.segments) <= 2 else "one image, several texts"
    return "interleaved" if images else "text"


def show_document(console: Console, title: str, document: Document) -> None:
    """Print the segments of a document in order; text without loss under ``supervised`` is dim."""
    lines = []
    for segment in document.segments:
        named = files_of(type(segment))
        if isinstance(segment, (Image, Fused)):
            picture = open_image(segment.data)
            width, height = picture.size
            kind = f"{modality_name(segment)} {picture.format}"
            lines.append(f"[cyan]▣ {kind} {width}×{height}, {len(segment.data)} bytes[/cyan]")
            if isinstance(segment, Image):
                continue
        elif named:
            data = getattr(segment, named[0])
            kind = f"▣ {modality_name(segment)} {describe(data)}, {len(data)} bytes"
            lines.append(styled("cyan", kind))
        text = segment.text if hasattr(segment, "text") else "" if named else str(segment)
        text = text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + " …"
        style = "magenta" if not isinstance(segment, Text) else "white" if segment.supervised else "dim"
        lines.append(styled(style, text))
        if not isinstance(segment, Text):
            continue
        for phrase in segment.boxes or ():
            boxes = ", ".join(" ".join(f"{edge:.3g}" for edge in box) for box in phrase.boxes) or "no box"
            lines.append(f"[cyan]  ▢ {escape(segment.text[phrase.begin : phrase.end])}: {boxes}[/cyan]")
    console.print(Panel("\n".join(lines), title=escape(title), title_align="left"))


def show_example(console: Console, example: Example, processor: KosmosProcessor, rows: int = 48) -> None:
    """Print an example token by token: what is read, what must be predicted, and with which weight.

    Of a long one the beginning, and where the predictions begin if that is later.
    """
    table = Table("t", "reads", "predicts", "weight", "block", "position", "in span", title=f"{len(example)} tokens")
    name = processor.tokenizer.convert_ids_to_tokens
    slots = {at for one in example.placed for at in range(one.start + 1, one.start + one.length)}
    places = [at for at in range(len(example)) if at not in slots]
    first = int(np.argmax(example.weight > 0))
    late = max(0, next((n for n, at in enumerate(places) if at >= first), 0) - 2)
    shown = places[:rows] if late < rows // 2 else [*places[: rows // 2], *places[late : late + rows // 2]]
    for number, at in enumerate(shown):
        if late > rows // 2 and number == rows // 2:
            table.add_row("…")
        predicted = escape(str(name(int(example.label[at])))) if example.weight[at] > 0 else "[dim]·[/dim]"
        columns = (example.block[at], example.position[at], example.position_in_span[at])
        weight = f"{example.weight[at]:g}"
        table.add_row(str(at), escape(str(name(int(example.token[at])))), predicted, weight, *map(str, columns))
    console.print(table)


def read_objective(text: str) -> str | dict[str, Any]:
    """An objective's name, or its settings, as given on the command line.

    Raises:
        ValueError: neither.
    """
    try:
        found = parse_yaml(text)
    except ValueError:
        found = None
    if not isinstance(found, (str, dict)):
        raise ValueError(f"--objective {text!r} is neither a name nor settings like '{{name: ul2, variant: ul2r}}'")
    return found


def inspect(
    path: str,
    console: Console,
    objective: str | None = None,
    processor: KosmosProcessor | None = None,
    masks: str | None = None,
    seed: int = 0,
) -> None:
    """Print one document of each kind below ``path``; with an objective also what it makes of it.

    Args:
        path: a shard, a corpus, or a folder of corpora.
        console: where to print.
        objective: name of an objective, or its settings as in a run's YAML: ``{name: ul2, variant: ul2r}``.
        processor: tokenizer and image processor for the objective.
        masks: folder for a PNG of each attention mask.
        seed: of the objective's draws.

    Raises:
        ValueError: an objective without a processor, or an unknown one.
        FileNotFoundError: no shards at ``path``.
        BadSample: a shown document cannot be read.
    """
    if objective is not None and processor is None:
        raise ValueError("--objective needs --processor FOLDER: it works on token ids")
    make = None
    if objective is not None and processor is not None:
        make = objectives.from_settings(read_objective(objective), processor)
    for corpus in corpora_below(path):
        images = sum(shard.images for shard in corpus.shards)
        console.print(
            f"{styled('bold', corpus.root)}  {counted(len(corpus), 'document')}, {counted(images, 'image')}, "
            f"{counted(len(corpus.shards), 'shard')}"
        )
        for kind, document in kinds(corpus):
            show_document(console, f"{kind}: {document.key}", document)
            if make is not None and processor is not None:
                name = re.sub(r"[^\w.-]+", "-", f"{Path(corpus.root).name}-{document.key}")
                show_objective(console, make, document, processor, seed, Path(masks) / f"{name}.png" if masks else None)


def show_objective(
    console: Console,
    make: objectives.Objective,
    document: Document,
    processor: KosmosProcessor,
    seed: int,
    picture: Path | None,
) -> None:
    """Print what the objective makes of a document, or why it makes nothing of it; the mask also as a ``picture``."""
    from . import objectives_view  # it imports torch

    try:
        example = make(document, seed)
    except BadSample as error:
        console.print(f"[yellow]left out: {escape(str(error))}[/yellow]")
        return
    show_example(console, example, processor)
    objectives_view.show(console, example, processor, picture)
