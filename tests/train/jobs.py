"""What forked ranks do in the tests."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from kosmos import settings
from kosmos_train.config import TrainConfig


def run(values: dict[str, Any], run_dir: str, resume: bool = False) -> dict[str, Any]:
    """Train as the command does; a signal gives ``finished`` False."""
    from kosmos_train import train

    outcome = train(settings.from_dict(TrainConfig, values), run_dir, resume)
    return {"step": outcome.step, "finished": outcome.finished}


def run_each(runs: list[tuple[dict[str, Any], str]], resume: bool = False) -> list[dict[str, Any]]:
    """:func:`run` of several settings, one after the other."""
    return [run(values, run_dir, resume) for values, run_dir in runs]


def run_on_host(host: str, values: dict[str, Any], run_dir: str, resume: bool) -> dict[str, Any]:
    """:func:`run` inside the network namespace ``host``, finding rank 0 at 10.99.0.1."""
    new_network = 0x40000000  # CLONE_NEWNET
    with open(f"/run/netns/{host}") as namespace:
        assert ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), new_network) == 0
    os.environ.update(MASTER_ADDR="10.99.0.1", GLOO_SOCKET_IFNAME="eth0")
    return run(values, run_dir, resume)


def make_engine(values: dict[str, Any], checkpoint: Path | None = None) -> Any:
    """An engine over the tiny model, with sources ``text`` and ``pairs``."""
    from kosmos_train.build import build_model, build_processor
    from kosmos_train.distributed import start
    from kosmos_train.engine import Engine

    config = settings.from_dict(TrainConfig, values)
    world = start(2.0)
    processor = build_processor(config)
    return Engine(build_model(config, processor, checkpoint), processor, config, world, ["text", "pairs"])


def save(folder: Path, step: int, engine: Any, processor: Any, state: dict[str, Any], keep: int) -> Path | None:
    """Write a checkpoint and wait for it."""
    from kosmos_train.saving import Saver

    saver = Saver(engine.world, folder, keep)
    saver.start(step, engine, processor, state)
    return saver.finish()


def build_processor_of(engine: Any) -> Any:
    """The processor that belongs to an engine."""
    from kosmos_train.build import build_processor

    return build_processor(engine.config)


def micro_batch(
    seed: int, processor: Any, image: bool, rows: int = 2, length: int = 32, span: bool = False
) -> dict[str, torch.Tensor]:
    """Random rows of random lengths; with ``image`` or ``span`` each row has one, without it the micro-batch none.

    The first row has two spans, so short that they are laid into one row of the encoder.
    """
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, 60, (rows, length), generator=draw)
    labels = torch.randint(4, 60, (rows, length), generator=draw)
    lengths = torch.randint(length // 2, length + 1, (rows, 1), generator=draw)
    padding = torch.arange(length) >= lengths
    slots = torch.tensor(processor.image_token_ids())
    weight = (~padding).float() * torch.randint(0, 3, (rows, length), generator=draw)
    batch = {"position_ids": torch.arange(length).repeat(rows, 1), "document_ids": -padding.long()}
    if image:
        tokens[:, 1 : 1 + len(slots)] = slots
        weight[:, : len(slots)] = 0
        pixels = torch.randint(0, 256, (rows, 3, 16, 16), generator=draw, dtype=torch.uint8)
        batch["pixel_values"] = pixels
    if span:  # of row r 2 + r tokens behind the encoder's BOS; of the first row twice one
        sizes = torch.tensor([2, 2, *range(4, rows + 3)])[:, None]
        mask = batch["span_attention_mask"] = (torch.arange(rows + 2) < sizes).long()
        batch["span_input_ids"] = torch.randint(4, 60, mask.shape, generator=draw) * mask
        for row in range(rows):
            tokens[row, 8 : 10 + row], weight[row, 8 : 10 + row] = processor.span_slot_id, 0
    labels = labels.masked_fill(weight == 0, -100)
    sources = torch.full((rows, length), int(image)).masked_fill(padding, -1)
    return {**batch, "input_ids": tokens, "shift_labels": labels, "loss_weight": weight, "source_ids": sources}


def step_batch(step: int, processor: Any, rank: int, size: int, total: int = 4) -> Any:
    """This rank's share of step ``step``: of ``total`` micro-batches, the first half has images, the rest is text only.

    With two ranks rank 1 never sees an image.
    """
    share = range(rank * total // size, (rank + 1) * total // size)
    micro = [micro_batch(1000 * step + index, processor, image=index < total // 2) for index in share]
    return SimpleNamespace(micro_batches=micro)


def tuning_losses(
    values: dict[str, Any], tunings: list[dict[str, Any]], variants: list[dict[str, Any]], steps: int
) -> list[list[list[list[float]]]]:
    """:func:`engine_losses` of each tuning; a step has two micro-batches, for two ranks or one after the other."""
    return [engine_losses(values | {"tuning": tuning}, variants, steps, total=2) for tuning in tunings]


def rate_of(step: int) -> float:
    """A learning rate that changes with every step and never is the configured one."""
    return 1e-3 * (1 + step % 3) / 2.5


def engine_losses(
    values: dict[str, Any], variants: list[dict[str, Any]], steps: int, total: int = 4
) -> list[list[list[float]]]:
    """[loss, gradient norm] of each step under each variant of the ``engine`` settings."""
    collected = []
    for variant in variants:
        engine = make_engine({**values, "engine": variant})
        processor = build_processor_of(engine)
        losses = []
        for step in range(1, steps + 1):
            batch = step_batch(step, processor, engine.world.rank, engine.world.size, total)
            result = engine.step(batch, step, rate_of(step), {})
            losses.append([result.loss, result.grad_norm])
        engine.close()
        collected.append(losses)
    return collected


def command(words: list[str]) -> int:
    """``kosmos WORDS``; returns the exit code."""
    from kosmos.cli import main

    return main(words)
