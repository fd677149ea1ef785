"""``kosmos encoder CONFIG run=DIR``: pretrain a bidirectional text encoder, by masked modelling.

BERT's objective (arXiv 1810.04805, section 3.1), for a language or a domain without a public encoder. The result is a
transformers checkpoint that ``model.span_weights`` reads; its vocabulary is the decoder's, as in MetaLM (section 3.2).

Differs from BERT: no next-sentence prediction (RoBERTa, arXiv 1907.11692, section 4.2, is better without), and from
MetaLM, whose encoder comes from replaced-token detection. One process; for encoders of real size use transformers.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kosmos.atomic import open_to_umask
from kosmos.processing_kosmos import KosmosProcessor, load_processor
from kosmos_data import objectives
from kosmos_data.errors import BadSample
from kosmos_data.order import SourceOrder, mix
from kosmos_data.reader import Corpus

from ..arguments import parse_run
from ..config import OptimConfig
from ..optim import learning_rate
from .training import PartConfig, fit, progress, warn_left_out


@dataclass
class EncoderConfig(PartConfig):
    """A masked-language-modelling run on text, in batches of windows.

    ``model`` holds the fields of the transformers config with its ``model_type`` (``bert``, ``roberta``, …); ids are
    filled in. The learning rate falls linearly.
    """

    window: int = 512
    """Longest input in tokens; longer documents are divided."""
    density: float = 0.15
    """Share of the tokens that are asked for."""


def train_encoder(config: EncoderConfig, run: str | Path) -> list[float]:
    """Train, write the checkpoint folder ``run``, and return the loss of every step, in nats.

    Raises:
        FileNotFoundError: the processor or a corpus is missing.
        ValueError: no corpus, an unknown model type, or a window that the encoder cannot read.
    """
    torch.manual_seed(config.seed)
    processor = load_processor(config.processor)
    model = build(config, processor)
    left_out: Counter[str] = Counter()
    inputs = itertools.islice(batches(config, processor, left_out), config.steps)
    masked = (_loss(model(input_ids=ids, attention_mask=mask).logits, labels) for ids, mask, labels in inputs)
    schedule = OptimConfig(lr=1.0, warmup=config.warmup)

    def rate(step: int) -> float:
        return learning_rate(step + 1, schedule, config.steps)

    with progress() as bars:
        losses, _ = fit(model, masked, config, rate, "masked language modelling", bars, clip=1.0)
    warn_left_out(", ".join(config.shards), left_out)
    model.save_pretrained(run)
    open_to_umask(Path(run))
    processor.tokenizer.save_pretrained(run)
    return losses


def _loss(logits_BLV: Tensor, labels_BL: Tensor) -> Tensor:
    return F.cross_entropy(logits_BLV.flatten(0, 1), labels_BL.flatten())


def build(config: EncoderConfig, processor: KosmosProcessor) -> Any:
    """The encoder with its output layer, random weights."""
    from transformers import AutoModelForMaskedLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    fields = dict(config.model)
    model_type = fields.pop("model_type", None)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"model.model_type={model_type!r}: transformers knows no such model; try bert or roberta")
    fields.setdefault("vocab_size", len(processor.tokenizer))
    fields.setdefault("pad_token_id", processor.tokenizer.pad_token_id)
    settings_of_model = CONFIG_MAPPING[model_type](**fields)
    limit = getattr(settings_of_model, "max_position_embeddings", None)
    if limit is not None and config.window > limit:
        raise ValueError(f"window={config.window} is longer than model.max_position_embeddings={limit}")
    return AutoModelForMaskedLM.from_config(settings_of_model).train()


def batches(
    config: EncoderConfig, processor: KosmosProcessor, left_out: Counter[str] | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless (ids, attention mask, labels), each (B, L) int64; labels are −100 where nothing is asked.

    ``left_out`` counts the unreadable documents by reason, each once.
    """
    pad = processor.tokenizer.pad_token_id
    source = windows(config, processor, Counter() if left_out is None else left_out)
    while True:
        rows = [next(source) for _ in range(config.batch_size)]
        width = max(len(token) for token, _ in rows)
        ids, labels = np.full((len(rows), width), pad), np.full((len(rows), width), -100)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        for row, (token, label) in enumerate(rows):
            ids[row, : len(token)], labels[row, : len(token)], mask[row, : len(token)] = token, label, 1
        yield torch.from_numpy(ids).long(), torch.from_numpy(mask), torch.from_numpy(labels).long()


def windows(
    config: EncoderConfig, processor: KosmosProcessor, left_out: Counter[str]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless (tokens, labels) of windows, documents in a new order each epoch; see :func:`batches`."""
    if not config.shards:
        raise ValueError("no shards given: name at least one corpus folder to train the encoder on")
    make = objectives.get("mlm", processor, density=config.density, chunk_tokens=config.window)
    corpora = [Corpus(root) for root in config.shards]
    counts = np.concatenate([corpus.counts for corpus in corpora])
    order = SourceOrder(counts, config.seed, "encoder")
    starts = np.cumsum([0, *(len(corpus) for corpus in corpora)])
    found = False
    for ordinal in itertools.count():
        if ordinal == order.total and not found:
            raise ValueError(f"{', '.join(config.shards)}: no document has text to train on")
        epoch, index = order[ordinal]
        which = int(np.searchsorted(starts, index, side="right")) - 1
        try:
            example = make(corpora[which][index - int(starts[which])], mix(config.seed, epoch, index))
        except BadSample as error:
            left_out[error.reason] += epoch == 0
            continue
        bounds = [0, *np.flatnonzero(example.cuts).tolist(), len(example)]
        for start, stop in itertools.pairwise(bounds):
            if example.weight[start:stop].any() and not example.fallback:
                found = True
                yield example.token[start:stop], example.label[start:stop]


def main(argv: Sequence[str]) -> None:
    """``kosmos encoder CONFIG run=DIR [key=value …]``."""
    config, run = parse_run("kosmos encoder", "Pretrain a text encoder.", EncoderConfig, argv)
    losses = train_encoder(config, run)
    print(f"{run}: masked loss {losses[0]:.3f} → {np.mean(losses[-20:]):.3f} nats in {len(losses)} steps")
