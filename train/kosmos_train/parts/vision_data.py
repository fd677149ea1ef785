"""Pictures and captions in memory for the contrastive training of a vision tower: reading, batches, augmentation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor

from kosmos.plain import escape
from kosmos.processing_kosmos import KosmosProcessor
from kosmos_data.document import Image, Text
from kosmos_data.errors import BadSample
from kosmos_data.images import decode
from kosmos_data.reader import Corpus

from .training import PartConfig, warn_left_out

if TYPE_CHECKING:
    from kosmos_data.document import Document


@dataclass
class VisionConfig(PartConfig):
    """A contrastive run on pairs; of each document the first image and the first text are used.

    ``model`` is open_clip's model JSON: ``embed_dim``, ``vision_cfg``, ``text_cfg``; the tokenizer's ids are filled in.
    The learning rate falls along a cosine.
    """

    steps: int = 600
    batch_size: int = 128
    lr: float = 2e-3
    warmup: int = 30
    weight_decay: float = 0.05
    text_encoder: str | None = None
    """Folder (or ``package:NAME/FOLDER``) of a sentence encoder, BERT-like with mean pooling, as all-MiniLM-L6-v2. It
    stays frozen and takes the place of ``text_cfg``; ``embed_dim`` becomes its width. None: both sides learn."""
    caption_prefixes: list[str] = field(default_factory=lambda: [""])
    """Use only captions that begin with one of these, without it: other wordings of one caption would be false
    negatives."""
    weights: list[float] = field(default_factory=list)
    """Share of each corpus of ``shards`` in a batch; empty: by its number of pairs."""
    shift: int = 4
    """Augmentation: random shift by up to so many pixels, borders repeated."""
    zoom: float = 0.0
    """Augmentation: random size between 1 − zoom and 1 + zoom."""
    turn: float = 0.0
    """Augmentation: random rotation by up to so many degrees."""
    flip: bool = True
    """Augmentation: mirror half of the pictures."""
    held_out: int = 256
    """Pairs kept from training, for the accuracy that is printed."""
    max_pairs: int = 100_000
    """Pictures are kept in memory; more than this are left unread."""


@dataclass
class Pairs:
    """Pictures (N, 3, S, S) uint8, their captions, and the number of the corpus that each is from."""

    pixels: Tensor
    captions: list[str]
    corpora: list[int]

    def select(self, rows: list[int]) -> Pairs:
        """Return only these pairs."""
        return Pairs(self.pixels[rows], [self.captions[row] for row in rows], [self.corpora[row] for row in rows])


def read_pairs(config: VisionConfig, processor: KosmosProcessor, bars: Progress | None = None) -> Pairs:
    """Read the first image and the first text of every document; unreadable ones are counted in a warning, by reason.

    Raises:
        FileNotFoundError: a corpus is missing.
        ValueError: too few pairs.
    """
    pixels: list[Tensor] = []
    captions: list[str] = []
    corpora: list[int] = []
    for number, root in enumerate(config.shards):
        corpus, left_out = Corpus(root), Counter[str]()
        task = bars.add_task(f"read {escape(Path(root).name)}", total=len(corpus), note="") if bars else None
        for index in range(len(corpus)):
            if bars and task is not None:
                bars.update(task, completed=index + 1, note=f"{len(captions)} pairs")
            if len(captions) >= config.max_pairs:
                break
            try:
                pair = _pair(corpus[index], config.caption_prefixes, processor)
            except BadSample as error:
                left_out[error.reason] += 1
                continue
            if pair is not None:
                pixels.append(pair[0])
                captions.append(pair[1])
                corpora.append(number)
        warn_left_out(root, left_out)
    if len(captions) <= config.held_out + config.batch_size:
        raise ValueError(_too_few(config, len(captions)))
    return Pairs(torch.stack(pixels), captions, corpora)


def _too_few(config: VisionConfig, found: int) -> str:
    prefixes = "" if "" in config.caption_prefixes else " or ".join(map(repr, config.caption_prefixes))
    return (
        f"{found} pairs{f' whose caption begins with {prefixes}' if prefixes else ''} in "
        f"{', '.join(config.shards) or 'no shards'}; need more than batch_size + held_out = {config.batch_size} + "
        f"{config.held_out}" + ("; caption_prefixes=[] takes captions of any beginning" if prefixes else "")
    )


def _pair(document: Document, prefixes: Sequence[str], processor: KosmosProcessor) -> tuple[Tensor, str] | None:
    """None for a document that is no pair, or whose caption begins otherwise; without prefixes any will do."""
    image = next((segment for segment in document.segments if isinstance(segment, Image)), None)
    text = next((segment.text for segment in document.segments if isinstance(segment, Text)), "").strip()
    prefix = next((prefix for prefix in prefixes or [""] if text.startswith(prefix)), None)
    if image is None or prefix is None:
        return None
    return torch.from_numpy(decode(image.data, processor.image_processor)), text.removeprefix(prefix).strip()


def split(pairs: Pairs, config: VisionConfig) -> tuple[Pairs, Pairs]:
    """Return the pairs to train on and the ``held_out`` ones, drawn at random."""
    order = torch.randperm(len(pairs.captions), generator=torch.Generator().manual_seed(config.seed)).tolist()
    return pairs.select(order[config.held_out :]), pairs.select(order[: config.held_out])


def batches(pairs: Pairs, config: VisionConfig, generator: torch.Generator) -> Iterator[list[int]]:
    """Yield row numbers for every step; each corpus passes by in its own random order, with its share of each batch.

    Raises:
        ValueError: ``weights`` do not fit ``shards``.
    """
    count = len(config.shards)
    members = [[row for row, corpus in enumerate(pairs.corpora) if corpus == number] for number in range(count)]
    weights = config.weights or [float(len(rows)) for rows in members]
    if len(weights) != count or min(weights) < 0 or sum(weights) <= 0:
        raise ValueError(f"weights={weights}: give one share, 0 or more, for each of {count} shards, not all 0")
    bounds = [round(config.batch_size * sum(weights[:number]) / sum(weights)) for number in range(count + 1)]
    streams = [_endless(rows, generator) for rows in members]
    for _ in range(config.steps):
        yield [
            next(stream)
            for stream, start, stop in zip(streams, bounds, bounds[1:], strict=False)
            for _ in range(stop - start)
        ]


def _endless(rows: list[int], generator: torch.Generator) -> Iterator[int]:
    while rows:
        yield from (rows[place] for place in torch.randperm(len(rows), generator=generator).tolist())


def augment(pixels: Tensor, config: VisionConfig, generator: torch.Generator) -> Tensor:
    """Shift, zoom, turn and mirror each picture of (B, 3, S, S) by its own random amounts; return floats, 0 to 255."""

    def draw(bound: float) -> Tensor:
        return (2 * torch.rand(len(pixels), generator=generator) - 1) * bound

    scale, angle = 1 + draw(config.zoom), draw(math.radians(config.turn))
    mirrored = torch.rand(len(pixels), generator=generator) < (0.5 if config.flip else 0.0)
    shift = 2 * config.shift / pixels.shape[-1]  # affine_grid counts from −1 to 1
    rows = (
        torch.stack([scale * angle.cos() * (1 - 2.0 * mirrored), -scale * angle.sin(), draw(shift)], 1),
        torch.stack([scale * angle.sin() * (1 - 2.0 * mirrored), scale * angle.cos(), draw(shift)], 1),
    )
    grid = F.affine_grid(torch.stack(rows, 1), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels.float(), grid, padding_mode="border", align_corners=False)
