"""``kosmos vision CONFIG run=DIR``: train a small open_clip CLIP on image-caption pairs, to be frozen afterwards.

For a domain without a public CLIP, and for the demo, which may download nothing. The result is a folder in open_clip's
own layout (``open_clip_config.json``, ``open_clip_model.safetensors``), so the same path that loads ``ViT-L-14`` from a
file loads it. For towers of real size use open_clip's trainer and point ``model.vision_weights`` at what it writes.

With ``text_encoder`` the text side is a finished sentence encoder that stays as it is, and only the ViT learns to put a
picture beside its caption (LiT, Zhai et al. 2022, with the frozen side exchanged): names that no training picture has
then still have a place.

Differs from CLIP (Radford et al. 2021): pairs with the same caption are one class (UniCL, Yang et al. 2022, eq. 3), as
otherwise a small corpus is full of false negatives; of a picture's several captions one is drawn each time.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kosmos.atomic import open_to_umask, writing
from kosmos.loading import encoder_folder
from kosmos.processing_kosmos import KosmosProcessor, load_processor
from kosmos.tokenization_kosmos import encode_text

from ..arguments import parse_run
from ..config import OptimConfig
from ..optim import learning_rate
from .training import fit, progress
from .vision_data import Pairs, VisionConfig, augment, batches, read_pairs, split

CHOICES = 8
"""Captions among which a held-out picture must find its own."""

FREQUENT = 16
"""A caption of so many pictures gets a correction beside a frozen sentence encoder."""


class Contrast(Protocol):
    """What is trained: an image and a text side that meet in one space, as open_clip's CLIP."""

    logit_scale: nn.Parameter

    def encode_image(self, image: Tensor) -> Tensor: ...
    def encode_text(self, text: Tensor) -> Tensor: ...


class LockedText(nn.Module):
    """A ViT that learns beside the fixed embeddings of a sentence encoder; a linear map of these learns too.

    A caption that many pictures share gets a learned correction besides: to a sentence encoder "a red circle" and "a
    red rectangle" are nearly the same, and a few hundred steps are too few to part them by one map for all captions.

    Args:
        captions_NC: unit embeddings of all captions.
        corrected_N: which of them are frequent enough for a correction.
        vision: open_clip's ``vision_cfg``.
        quick_gelu: as in open_clip's model JSON.
    """

    def __init__(self, captions_NC: Tensor, corrected_N: Tensor, vision: dict[str, Any], quick_gelu: bool) -> None:
        super().__init__()
        from open_clip.model import _build_vision_tower

        width = captions_NC.shape[1]
        self.captions = captions_NC
        # the others share a last row of zeros, which no update touches: an optimizer would walk over all of theirs
        count = int(corrected_N.sum())
        self.correction_of = torch.full((len(captions_NC),), count).masked_scatter(corrected_N, torch.arange(count))
        self.corrections = nn.Parameter(torch.zeros(count, width))
        self.visual = _build_vision_tower(width, vision, quick_gelu)
        self.projection = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.projection.weight)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode_image(self, image: Tensor) -> Tensor:
        """Normalised pixels (B, 3, S, S) to (B, width)."""
        return self.visual(image)

    def encode_text(self, text: Tensor) -> Tensor:
        """Numbers of captions (N,) to (N, width)."""
        corrections = F.pad(self.corrections, (0, 0, 0, 1))
        return self.projection(self.captions[text] + corrections[self.correction_of[text]])


def train_vision(config: VisionConfig, run: str | Path) -> dict[str, Any]:
    """Train, and write the open_clip folder ``run``; return steps, loss, held-out accuracy by corpus, and seconds.

    Raises:
        FileNotFoundError: the processor or a corpus is missing.
        ValueError: too few pairs, or no caption begins with one of ``caption_prefixes``.
    """
    torch.manual_seed(config.seed)
    started = time.perf_counter()
    processor = load_processor(config.processor)
    with progress() as bars:
        pairs = read_pairs(config, processor, bars)
        train, held_out = split(pairs, config)
        names = sorted(set(pairs.captions))
        model, texts = _build(config, processor, names, Counter(train.captions))
        losses = _losses(model, train, names, texts, config, processor)
        _, loss = fit(model, losses, config, lambda step: _rate(step, config), "CLIP", bars, betas=(0.9, 0.98))
    accuracy = choice_accuracy(model, held_out, names, texts, config, processor)
    _save(model, config, processor, Path(run))
    seconds = time.perf_counter() - started
    return {"steps": config.steps, "loss": loss, "held_out_accuracy": accuracy, "seconds": round(seconds, 1)}


def _build(
    config: VisionConfig, processor: KosmosProcessor, names: Sequence[str], counts: Mapping[str, int]
) -> tuple[Any, Tensor]:
    """The model, and all captions as its text side reads them: token ids, or their numbers for a frozen encoder."""
    config.model["vision_cfg"].setdefault("image_size", processor.image_processor.image_size)
    if config.text_encoder is not None:
        embeddings = sentence_embeddings(encoder_folder(config.text_encoder), names)
        config.model["embed_dim"] = embeddings.shape[1]
        config.model.setdefault("text_cfg", {"hf_model_name": config.text_encoder})
        quick_gelu = bool(config.model.get("quick_gelu", False))
        frequent = torch.tensor([counts[name] >= FREQUENT for name in names])
        model = LockedText(embeddings, frequent, config.model["vision_cfg"], quick_gelu)
        return model, torch.arange(len(names))
    from open_clip.model import CLIP

    _complete_text_config(config, processor, names)
    model = CLIP(**config.model)
    return model, tokenize(names, processor, model.context_length)


def _complete_text_config(config: VisionConfig, processor: KosmosProcessor, captions: Sequence[str]) -> None:
    tokenizer = processor.tokenizer
    text = config.model.setdefault("text_cfg", {})
    text.setdefault("context_length", max(len(encode_text(tokenizer, caption)) for caption in captions) + 2)
    text.update(
        vocab_size=len(tokenizer), pad_id=tokenizer.pad_token_id, eos_id=tokenizer.eos_token_id, pool_type="eos"
    )


@torch.no_grad()
def sentence_embeddings(folder: Path, texts: Sequence[str]) -> Tensor:
    """Return unit vectors (N, C) of ``texts``: the mean of a BERT-like encoder's states over their tokens.

    Raises:
        ValueError: no encoder with its tokenizer in ``folder``.
    """
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    except (OSError, ValueError) as error:
        raise ValueError(f"text_encoder={folder}: no sentence encoder with a tokenizer here ({error})") from error
    # By length, so that little is padding.
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    embeddings = torch.empty(len(texts), model.config.hidden_size)
    for start in range(0, len(order), 256):
        rows = order[start : start + 256]
        batch = tokenizer([texts[row] for row in rows], padding=True, truncation=True, return_tensors="pt")
        weight = batch["attention_mask"][..., None].float()
        states = model(**batch).last_hidden_state
        embeddings[rows] = F.normalize((states * weight).sum(1) / weight.sum(1), dim=-1)
    return embeddings


def _losses(
    model: Any, train: Pairs, names: Sequence[str], texts: Tensor, config: VisionConfig, processor: KosmosProcessor
) -> Iterator[Tensor]:
    """The loss of each batch; the temperature is kept in bounds after its update."""
    place = {name: number for number, name in enumerate(names)}
    labels = torch.tensor([place[caption] for caption in train.captions])
    generator = torch.Generator().manual_seed(config.seed)
    for rows in batches(train, config, generator):
        pixels = processor.image_processor.normalize(augment(train.pixels[rows], config, generator))
        yield contrastive_loss(model, pixels, texts, labels[rows])
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))


def contrastive_loss(model: Contrast, pixels: Tensor, texts: Tensor, labels: Tensor) -> Tensor:
    """UniCL's symmetric loss (eq. 3): rows of one caption share it; every distinct caption is encoded once."""
    present, column = labels.unique(return_inverse=True)
    image = F.normalize(model.encode_image(pixels), dim=-1)
    text = F.normalize(model.encode_text(texts[present]), dim=-1)
    logits = model.logit_scale.exp() * image @ text.T
    members = F.one_hot(column, len(present)).float()
    to_image = -(members / members.sum(0) * logits.log_softmax(0)).sum(0).mean()
    return (F.cross_entropy(logits, column) + to_image) / 2


@torch.no_grad()
def choice_accuracy(
    model: Any, pairs: Pairs, names: Sequence[str], texts: Tensor, config: VisionConfig, processor: KosmosProcessor
) -> dict[str, float]:
    """Share of pictures, by corpus, that are nearer to their own caption than to seven others of the corpus."""
    model.eval()
    place = {name: number for number, name in enumerate(names)}
    text = F.normalize(model.encode_text(texts), dim=-1)
    shares = {}
    for number, root in enumerate(config.shards):
        rows = [row for row, corpus in enumerate(pairs.corpora) if corpus == number]
        captions = sorted({pairs.captions[row] for row in rows})
        if len(captions) < CHOICES:
            continue
        pixels = processor.image_processor.normalize(pairs.pixels[rows])
        image = torch.cat([F.normalize(model.encode_image(part), dim=-1) for part in pixels.split(128)])
        rng, hits = random.Random(config.seed), 0
        for row, vector in zip(rows, image, strict=True):
            own = pairs.captions[row]
            others = rng.sample([caption for caption in captions if caption != own], CHOICES - 1)
            near = text[[place[caption] for caption in (own, *others)]] @ vector
            hits += int(near.argmax()) == 0
        shares["/".join(Path(root).parts[-2:])] = hits / len(rows)
    return shares


def tokenize(captions: Sequence[str], processor: KosmosProcessor, length: int) -> Tensor:
    """Captions as (N, length) ids: ``<s> … </s>``, padded, cut to fit."""
    tokenizer = processor.tokenizer
    ids = torch.full((len(captions), length), tokenizer.pad_token_id)
    for row, caption in enumerate(captions):
        tokens = [tokenizer.bos_token_id, *encode_text(tokenizer, caption)[: length - 2], tokenizer.eos_token_id]
        ids[row, : len(tokens)] = torch.tensor(tokens)
    return ids


def _rate(step: int, config: VisionConfig) -> float:
    """The cosine counts from the first step, not from the end of the warm-up as in other trainings."""
    warmup = config.warmup if step < config.warmup else 0
    return learning_rate(step + 1, OptimConfig(lr=1.0, schedule="cosine", warmup=warmup), config.steps)


def _save(model: nn.Module, config: VisionConfig, processor: KosmosProcessor, folder: Path) -> None:
    """The layout that ``open_clip.create_model('local-dir:…')`` reads; written last what marks it complete.

    Of a model with a frozen sentence encoder only the image side is written: the other is where it was.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    left = ("projection.weight", "corrections")
    kept = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in left}
    with writing(folder):
        save_file(kept, folder / "open_clip_model.safetensors")
    open_to_umask(folder)
    preprocess = {"mean": processor.image_processor.image_mean, "std": processor.image_processor.image_std}
    text = json.dumps({"model_cfg": config.model, "preprocess_cfg": preprocess}, indent=2)
    (folder / "open_clip_config.json").write_text(text + "\n", encoding="utf-8")


def main(argv: Sequence[str]) -> None:
    """``kosmos vision CONFIG run=DIR [key=value …]``."""
    config, run = parse_run("kosmos vision", "Train a small CLIP on image-caption pairs.", VisionConfig, argv)
    result = train_vision(config, run)
    print(f"{run}: {result['steps']} steps, {result['seconds']} s; {accuracy_line(result['held_out_accuracy'])}")


def accuracy_line(accuracy: dict[str, float]) -> str:
    """The result in words."""
    shares = ", ".join(f"{share:.1%} ({name})" for name, share in accuracy.items()) or "too few captions"
    return f"held-out pictures matched to the right one of {CHOICES} captions: {shares}"
