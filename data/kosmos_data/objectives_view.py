"""What an objective makes of a document: tokens in colours, the attention mask as letters and as a picture.

Red tokens are predicted (the label stands at the output before them), on blue ground stands what sees both ways, dim is
what an encoder reads. In the mask a row is a query, a column a key, as in :mod:`kosmos.attention`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as Pictures
from rich.console import Console
from rich.text import Text as Line

from .example import Example

if TYPE_CHECKING:
    from kosmos.processing_kosmos import KosmosProcessor

MOST_CELLS = 64
CELL_PIXELS = 6
WHITE, CAUSAL, BOTH_WAYS, TARGET = (255, 255, 255), (150, 150, 150), (70, 110, 220), (214, 60, 50)


def attention_mask(example: Example) -> np.ndarray:
    """The one mask rule, dense: (T, T), True where query (row) sees key (column)."""
    places = np.arange(len(example))
    same_document = example.document[:, None] == example.document[None]
    same_block = (example.block[:, None] == example.block[None]) & (example.block[:, None] >= 0)
    return same_document & ((places[None] <= places[:, None]) | same_block)


def loss_exposure(example: Example) -> float:
    """Share of the tokens whose output carries loss."""
    return float((example.weight > 0).mean())


def colour_tokens(example: Example, processor: KosmosProcessor, most: int = 400) -> Line:
    """The tokens in reading order; slots of one span are one mark."""
    names = processor.tokenizer.convert_ids_to_tokens(example.token.tolist())
    spans = {span.start: span for span in example.spans}
    predicted = np.append(False, example.weight[:-1] > 0) & np.append(False, example.label[:-1] == example.token[1:])
    in_place = (example.weight > 0) & (example.block >= 0) & np.append(example.block[1:] >= 0, False)
    line = Line()
    at = 0
    while at < min(most, len(example)):
        ground = " on blue" if example.block[at] >= 0 else ""
        if at in spans:
            span = spans[at]
            line.append(f"[{span.kind} × {span.length}]", style=f"dim cyan{ground}")
            at += span.length
            continue
        style = "bold red" if predicted[at] or in_place[at] else "default"
        line.append(names[at].replace("▁", " ") if names[at] != "▁" else " ", style=style + ground)
        at += 1
    if at < len(example):
        line.append(f" … {len(example) - at} more", style="dim")
    return line


def mask_art(example: Example, most: int = MOST_CELLS) -> str:
    """The mask as letters, at most ``most`` a side: ``█`` seen in a bidirectional block, ``▒`` earlier, ``·`` hidden.

    At the right ``◀`` marks outputs that carry loss. Longer examples are thinned to every n-th token.
    """
    step = -(-len(example) // most)
    seen = attention_mask(example)[::step, ::step]
    blocks = example.block[::step]
    both = (blocks[:, None] == blocks[None]) & (blocks[:, None] >= 0)
    letters = np.where(seen, np.where(both, "█", "▒"), "·")
    loss = [bool((example.weight[at : at + step] > 0).any()) for at in range(0, len(example), step)]
    lines = ["".join(row) + (" ◀" if marked else "") for row, marked in zip(letters, loss, strict=True)]
    return "\n".join(lines + ([f"every {step}th token"] if step > 1 else []))


def save_mask(example: Example, path: Path) -> None:
    """The mask as a PNG, one square a pair of tokens; the last column is red where the output carries loss."""
    seen = attention_mask(example)
    both = (example.block[:, None] == example.block[None]) & (example.block[:, None] >= 0)
    pixels = np.full((*seen.shape, 3), WHITE, dtype=np.uint8)
    pixels[seen] = CAUSAL
    pixels[both] = BOTH_WAYS
    loss = np.where((example.weight > 0)[:, None, None], TARGET, WHITE).astype(np.uint8)
    pixels = np.concatenate([pixels, np.full_like(loss, 255), loss], axis=1)
    size = max(1, min(CELL_PIXELS, 2048 // len(example)))
    path.parent.mkdir(parents=True, exist_ok=True)
    Pictures.fromarray(pixels.repeat(size, axis=0).repeat(size, axis=1)).save(path)


def show(console: Console, example: Example, processor: KosmosProcessor, picture: Path | None = None) -> None:
    """Print the coloured tokens, the figures and the mask; write the mask to ``picture``."""
    exposure, read_both = loss_exposure(example), float((example.block >= 0).mean())
    console.print(colour_tokens(example, processor))
    note = f", {example.fallback} stretches too short for the objective" if example.fallback else ""
    console.print(
        f"{len(example)} tokens, loss exposure {exposure:.1%}, bidirectional {read_both:.1%}, "
        f"{len(example.spans)} spans{note}   [bold red]predicted[/]  [on blue]both ways[/]  [dim cyan]encoded[/]"
    )
    console.print(mask_art(example), highlight=False)
    if picture is not None:
        save_mask(example, picture)
        console.print(f"mask written to {picture}")
