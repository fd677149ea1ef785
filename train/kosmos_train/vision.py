"""``kosmos vision CONFIG run=DIR``: train a small open_clip CLIP on image-caption pairs, to be frozen afterwards.

For a domain without a public CLIP, and for the demo, which may download nothing. The result is a folder in open_clip's
own layout (``open_clip_config.json``, ``open_clip_model.safetensors``), so the same path that loads ``ViT-L-14`` from a
file loads it. For towers of real size use open_clip's trainer and point ``model.vision_weights`` at what it writes.

Differs from CLIP (Radford et al. 2021): pairs with the same caption are one class (UniCL, Yang et al. 2022, eq. 3), as
otherwise a small corpus is full of false negatives.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from kosmos import settings
from kosmos.processing_kosmos import KosmosProcessor, load_processor
from kosmos.tokenization_kosmos import encode_text
from kosmos_data.document import Image, Text
from kosmos_data.errors import BadSample
from kosmos_data.images import decode
from kosmos_data.reader import Corpus

from .arguments import add_run_arguments, parse_run_arguments, require_run
from .parts import PartConfig, warn_left_out

if TYPE_CHECKING:
    from open_clip.model import CLIP


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
    caption_prefix: str = ""
    """Use only captions that begin so, without it: other wordings of one caption would be false negatives."""
    shift: int = 4
    """Augmentation: random shift by up to so many pixels, borders repeated."""
    flip: bool = True
    """Augmentation: mirror half of the pictures."""
    held_out: int = 256
    """Pairs kept from training, for the accuracy that is printed."""
    max_pairs: int = 100_000
    """Pictures are kept in memory; more than this are left unread."""


@dataclass
class Pairs:
    """Pictures (N, 3, S, S) uint8 and their captions."""

    pixels: Tensor
    captions: list[str]


def train_vision(config: VisionConfig, run: str | Path) -> dict[str, float]:
    """Train, and write the open_clip folder ``run``; return steps, loss, held-out accuracy and seconds.

    Raises:
        FileNotFoundError: the processor or a corpus is missing.
        ValueError: too few pairs, or no caption begins with ``caption_prefix``.
    """
    torch.manual_seed(config.seed)
    started = time.perf_counter()
    processor = load_processor(config.processor)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn()
    ) as bars:
        pairs = read_pairs(config, processor, bars)
        train, held_out = _split(pairs, config)
        model = _build(config, processor, train.captions)
        loss = _optimise(model, train, config, processor, bars)
    accuracy = zero_shot_accuracy(model, held_out, sorted(set(train.captions)), processor)
    _save(model, config, processor, Path(run))
    seconds = time.perf_counter() - started
    return {"steps": config.steps, "loss": loss, "held_out_accuracy": accuracy, "seconds": round(seconds, 1)}


def read_pairs(config: VisionConfig, processor: KosmosProcessor, bars: Progress | None = None) -> Pairs:
    """The first image and the first text of every document; unreadable ones are left out, with a warning by reason."""
    pixels: list[Tensor] = []
    captions: list[str] = []
    for root in config.shards:
        corpus, left_out = Corpus(root), Counter[str]()
        task = bars.add_task(f"read {Path(root).name}", total=len(corpus), note="") if bars else None
        for index in range(len(corpus)):
            if bars and task is not None:
                bars.update(task, completed=index + 1, note=f"{len(captions)} pairs")
            if len(captions) >= config.max_pairs:
                break
            try:
                pair = _read_pair(corpus, index, config.caption_prefix, processor)
            except BadSample as error:
                left_out[error.reason] += 1
                continue
            if pair is not None:
                pixels.append(pair[0])
                captions.append(pair[1])
        warn_left_out(root, left_out)
    if len(captions) <= config.held_out + config.batch_size:
        prefix = f" whose caption begins with {config.caption_prefix!r}" if config.caption_prefix else ""
        raise ValueError(
            f"{len(captions)} pairs{prefix} in {', '.join(config.shards) or 'no shards'}; "
            f"need more than batch_size + held_out = {config.batch_size + config.held_out}"
        )
    return Pairs(torch.stack(pixels), captions)


def _read_pair(corpus: Corpus, index: int, prefix: str, processor: KosmosProcessor) -> tuple[Tensor, str] | None:
    """None for a document that is no pair, or whose caption begins otherwise."""
    segments = corpus[index].segments
    image = next((segment for segment in segments if isinstance(segment, Image)), None)
    text = next((segment.text for segment in segments if isinstance(segment, Text)), "").strip()
    if image is None or not text.startswith(prefix):
        return None
    return torch.from_numpy(decode(image.data, processor.image_processor)), text.removeprefix(prefix).strip()


def _split(pairs: Pairs, config: VisionConfig) -> tuple[Pairs, Pairs]:
    order = torch.randperm(len(pairs.captions), generator=torch.Generator().manual_seed(config.seed)).tolist()
    held, kept = order[: config.held_out], order[config.held_out :]
    return tuple(Pairs(pairs.pixels[rows], [pairs.captions[row] for row in rows]) for rows in (kept, held))  # type: ignore[return-value]


def _build(config: VisionConfig, processor: KosmosProcessor, captions: Sequence[str]) -> CLIP:
    from open_clip.model import CLIP

    _complete_text_config(config, processor, captions)
    return CLIP(**config.model)


def _complete_text_config(config: VisionConfig, processor: KosmosProcessor, captions: Sequence[str]) -> None:
    tokenizer = processor.tokenizer
    text = config.model.setdefault("text_cfg", {})
    text.setdefault("context_length", max(len(encode_text(tokenizer, caption)) for caption in set(captions)) + 2)
    text.update(
        vocab_size=len(tokenizer), pad_id=tokenizer.pad_token_id, eos_id=tokenizer.eos_token_id, pool_type="eos"
    )
    config.model["vision_cfg"].setdefault("image_size", processor.image_processor.image_size)


def _optimise(model: CLIP, train: Pairs, config: VisionConfig, processor: KosmosProcessor, bars: Progress) -> float:
    names = sorted(set(train.captions))
    ids = tokenize(names, processor, model.context_length)
    labels = torch.tensor([names.index(caption) for caption in train.captions])
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _learning_rate(step, config))
    generator = torch.Generator().manual_seed(config.seed)
    task = bars.add_task("CLIP", total=config.steps, note="")
    average = math.nan
    for rows in _batches(len(labels), config, generator):
        pixels = processor.image_processor.normalize(augment(train.pixels[rows], config, generator))
        loss = contrastive_loss(model, pixels, ids, labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        average = loss.item() if math.isnan(average) else 0.95 * average + 0.05 * loss.item()
        bars.update(task, advance=1, note=f"loss {average:.3f}")
    return average


def contrastive_loss(model: CLIP, pixels: Tensor, ids: Tensor, labels: Tensor) -> Tensor:
    """UniCL's symmetric loss (eq. 3): rows of one caption share it; every distinct caption is encoded once."""
    present, column = labels.unique(return_inverse=True)
    image = F.normalize(model.encode_image(pixels), dim=-1)
    text = F.normalize(model.encode_text(ids[present]), dim=-1)
    logits = model.logit_scale.exp() * image @ text.T
    members = F.one_hot(column, len(present)).float()
    to_image = -(members / members.sum(0) * logits.log_softmax(0)).sum(0).mean()
    return (F.cross_entropy(logits, column) + to_image) / 2


def augment(pixels: Tensor, config: VisionConfig, generator: torch.Generator) -> Tensor:
    """Shift each picture (B, 3, S, S) by its own random offset and mirror half of them."""
    batch, _, size, _ = pixels.shape
    if config.shift:
        padded = F.pad(pixels.float(), (config.shift,) * 4, mode="replicate")
        offsets = torch.randint(0, 2 * config.shift + 1, (2, batch, 1), generator=generator) + torch.arange(size)
        first, channel = torch.arange(batch).view(-1, 1, 1, 1), torch.arange(3).view(1, -1, 1, 1)
        pixels = padded[first, channel, offsets[0][:, None, :, None], offsets[1][:, None, None, :]]
    if config.flip:
        mirrored = torch.rand(batch, generator=generator) < 0.5
        pixels = torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(-1), pixels)
    return pixels


@torch.no_grad()
def zero_shot_accuracy(model: CLIP, pairs: Pairs, names: Sequence[str], processor: KosmosProcessor) -> float:
    """Share of pictures whose own caption is the nearest of all ``names``."""
    model.eval()
    text = F.normalize(model.encode_text(tokenize(names, processor, model.context_length)), dim=-1)
    hits = 0
    for pixels, captions in zip(pairs.pixels.split(128), _chunks(pairs.captions, 128), strict=True):
        image = F.normalize(model.encode_image(processor.image_processor.normalize(pixels)), dim=-1)
        hits += sum(
            names[row] == caption for row, caption in zip((image @ text.T).argmax(-1).tolist(), captions, strict=True)
        )
    return hits / len(pairs.captions)


def tokenize(captions: Sequence[str], processor: KosmosProcessor, length: int) -> Tensor:
    """Captions as (N, length) ids: ``<s> … </s>``, padded, cut to fit."""
    tokenizer = processor.tokenizer
    ids = torch.full((len(captions), length), tokenizer.pad_token_id)
    for row, caption in enumerate(captions):
        tokens = [tokenizer.bos_token_id, *encode_text(tokenizer, caption)[: length - 2], tokenizer.eos_token_id]
        ids[row, : len(tokens)] = torch.tensor(tokens)
    return ids


def _batches(count: int, config: VisionConfig, generator: torch.Generator) -> Iterator[Tensor]:
    order, position = torch.randperm(count, generator=generator), 0
    for _ in range(config.steps):
        if position + config.batch_size > count:
            order, position = torch.randperm(count, generator=generator), 0
        yield order[position : position + config.batch_size]
        position += config.batch_size


def _learning_rate(step: int, config: VisionConfig) -> float:
    if step < config.warmup:
        return (step + 1) / config.warmup
    return 0.5 * (1 + math.cos(math.pi * step / config.steps))


def _chunks(items: Sequence[str], size: int) -> list[Sequence[str]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _save(model: CLIP, config: VisionConfig, processor: KosmosProcessor, folder: Path) -> None:
    """The layout that ``open_clip.create_model('local-dir:…')`` reads; written last what marks it complete."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    preprocess = {"mean": processor.image_processor.image_mean, "std": processor.image_processor.image_std}
    text = json.dumps({"model_cfg": config.model, "preprocess_cfg": preprocess}, indent=2)
    (folder / "open_clip_config.json").write_text(text + "\n", encoding="utf-8")


def main(argv: Sequence[str]) -> None:
    """``kosmos vision CONFIG run=DIR [key=value …]``."""
    parser = argparse.ArgumentParser(prog="kosmos vision", description="Train a small CLIP on image-caption pairs.")
    add_run_arguments(parser)
    arguments, run = parse_run_arguments(parser, argv)
    config = settings.load(VisionConfig, arguments.config, arguments.overrides)
    result = train_vision(config, require_run(run))
    print(f"{run}: held-out accuracy {result['held_out_accuracy']:.1%}, {result['steps']} steps, {result['seconds']} s")
