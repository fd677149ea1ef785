"""What an objective makes of a document: tokens in colours, the attention mask as letters and as a picture.

Red tokens are predicted (the label stands at the output before them), on blue ground stands what sees both ways, dim is
what an encoder reads. Where there are no colours (a file, a pipe) predicted is put in «», what sees both ways in {}. In
the mask a row is a query, a column a key, as in :mod:`kosmos.attention`; in its picture grey is seen because it is
earlier, blue within a bidirectional block. Long examples are thinned before their mask is made.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image as Pictures
from rich.console import Console
from rich.text import Text as Line

from kosmos.masks import document_mask
from kosmos.plain import escape

from .example import Example

if TYPE_CHECKING:
    from kosmos.processing_kosmos import KosmosProcessor

MOST_CELLS, LETTERS = 64, np.array(["·", "▒", "█"])
MOST_PIXELS, CELL_PIXELS, LOSS_PIXELS = 2048, 6, 12
STYLES = {"predicted": "bold red", "encoded": "dim cyan", "read": "default"}
COLOURS = np.array([(255, 255, 255), (150, 150, 150), (70, 110, 220), (214, 60, 50)], dtype=np.uint8)
"""Hidden, seen, seen both ways, output with loss."""


def attention_mask(example: Example, step: int = 1) -> np.ndarray:
    """The one mask rule of every ``step``-th token, dense: True where query (row) sees key (column)."""
    documents, blocks = (torch.from_numpy(ids[None, ::step]) for ids in (example.document, example.block))
    return document_mask(documents, blocks)[0].numpy()


def loss_exposure(example: Example) -> float:
    """Share of the tokens whose output carries loss."""
    return float((example.weight > 0).mean())


def colour_tokens(example: Example, processor: KosmosProcessor, most: int = 400, colours: bool = True) -> Line:
    """The tokens in reading order; what an encoder reads is one mark."""
    names = processor.tokenizer.convert_ids_to_tokens(example.token.tolist())
    placed = {one.start: one for one in example.placed}
    predicted = np.append(False, example.weight[:-1] > 0) & np.append(False, example.label[:-1] == example.token[1:])
    in_place = (example.weight > 0) & (example.block >= 0) & np.append(example.block[1:] >= 0, False)
    stretches: list[tuple[str, str, bool]] = []  # text, what it is, whether it sees both ways
    at = 0
    while at < min(most, len(example)):
        here, both = placed.get(at), bool(example.block[at] >= 0)
        if here is not None:
            stretches.append((f"[{here.modality} × {here.length}]", "encoded", both))
        else:
            kind, text = "predicted" if predicted[at] or in_place[at] else "read", names[at].replace("▁", " ")
            if stretches and stretches[-1][1:] == (kind, both):
                text = stretches.pop()[0] + text
            stretches.append((text, kind, both))
        at += here.length if here is not None else 1
    line = Line()
    for text, kind, both in stretches:
        marks = "«»" if kind == "predicted" else "{}" if both else ""
        if marks and not colours:
            text = marks[0] + text + marks[1]
        line.append(text, style=STYLES[kind] + (" on blue" if both else ""))
    if at < len(example):
        line.append(f" … {len(example) - at} more", style="dim")
    return line


def mask_cells(example: Example, most: int) -> tuple[np.ndarray, np.ndarray, int]:
    """What a picture of the mask shows, thinned to at most ``most`` tokens a side.

    Returns:
        (N, N) 0 hidden, 1 seen, 2 seen in a bidirectional block; (N,) whether any output of the step carries loss; the
        step: every so many tokens one is shown.
    """
    step = -(-len(example) // most)
    block = example.block[::step]
    both = (block[:, None] == block[None]) & (block[:, None] >= 0)
    cells = attention_mask(example, step) * np.where(both, 2, 1).astype(np.uint8)
    return cells, np.maximum.reduceat(example.weight, np.arange(0, len(example), step)) > 0, step


def mask_art(example: Example, most: int = MOST_CELLS) -> str:
    """The mask as letters, at most ``most`` a side: ``█`` seen in a bidirectional block, ``▒`` earlier, ``·`` hidden.

    At the right ``◀`` marks outputs that carry loss.
    """
    cells, loss, step = mask_cells(example, most)
    lines = ["".join(row) + (" ◀" if marked else "") for row, marked in zip(LETTERS[cells], loss, strict=True)]
    return "\n".join(lines + ([f"one cell: {step} tokens"] if step > 1 else []))


def save_mask(example: Example, path: Path) -> None:
    """The mask as a PNG, squares of tokens in the colours of the module; red at the right: the output carries loss."""
    cells, loss, _ = mask_cells(example, MOST_PIXELS)
    beside = np.outer(loss, [0] * LOSS_PIXELS + [len(COLOURS) - 1] * LOSS_PIXELS)
    size = min(CELL_PIXELS, MOST_PIXELS // len(cells))
    pixels = COLOURS[np.concatenate([cells.repeat(size, axis=1), beside], axis=1).repeat(size, axis=0)]
    path.parent.mkdir(parents=True, exist_ok=True)
    Pictures.fromarray(pixels).save(path)


def show(console: Console, example: Example, processor: KosmosProcessor, picture: Path | None = None) -> None:
    """Print the coloured tokens, the figures and the mask; write the mask to ``picture``."""
    exposure, read_both = loss_exposure(example), float((example.block >= 0).mean())
    colours = console.color_system is not None
    console.print(colour_tokens(example, processor, colours=colours))
    note = f", {example.fallback} stretches too short for the objective" if example.fallback else ""
    legend = "[bold red]predicted[/]  [on blue]both ways[/]  [dim cyan]encoded[/]"
    if not colours:
        legend = escape("«predicted»  {both ways}  [encoded]")
    console.print(
        f"{len(example)} tokens, loss exposure {exposure:.1%}, bidirectional {read_both:.1%}, "
        f"{len(example.placed)} encoded{note}   {legend}"
    )
    console.print(mask_art(example), highlight=False)
    if picture is not None:
        save_mask(example, picture)
        console.print(f"mask written to {escape(picture)}")
