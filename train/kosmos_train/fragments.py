"""Where each parameter's fp32 master weight and moments live on this rank, under every ZeRO stage.

DeepSpeed keeps optimiser state in flat partitions. A *fragment* says: elements ``start … start + numel`` of parameter
``name`` are at ``offset`` of flat partition ``flat``. Checkpoints store fragments by name and start, so any number of
processes under any stage can read what any other wrote.

DeepSpeed's own universal checkpoint is not used: in 0.19.8 it restores no frozen parameters and, under ZeRO-3, mixes up
the hyper-parameters and step counts of parameter groups.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from .host_copy import host_copy, wait_for_copies

MOMENTS = ("exp_avg", "exp_avg_sq")
MOMENTUM = MOMENTS[:1]  # all that Muon keeps


@dataclass(frozen=True)
class Fragment:
    """A piece of one parameter on this rank."""

    name: str
    start: int
    numel: int
    flat: torch.Tensor
    offset: int

    def kinds(self, optimizer: torch.optim.Optimizer) -> list[str]:
        """What there is of it: ``master`` and the moments that its optimiser keeps."""
        return ["master", *(kind for kind in MOMENTS if kind in optimizer.state[self.flat])]

    def view(self, kind: str, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        """The live 1-D tensor of this piece: ``master`` weight or one of the moments."""
        whole = self.flat.data if kind == "master" else optimizer.state[self.flat][kind]
        return whole.view(-1).narrow(0, self.offset, self.numel)


def flat_partitions(engine: Any) -> list[torch.Tensor]:
    """The fp32 tensors that the inner optimiser updates on this rank, in group order."""
    stage, zero = engine.zero_optimization_stage(), engine.optimizer
    if stage == 0:
        return [parameter for group in engine.basic_optimizer.param_groups for parameter in group["params"]]
    if stage == 3:
        return list(zero.fp32_partitioned_groups_flat)
    if hasattr(zero, "single_partition_of_fp32_groups"):
        return list(zero.single_partition_of_fp32_groups)
    return list(zero.fp32_groups_flat_partition)  # ZeRO-1 in bf16 is another class


def fragments(engine: Any) -> Iterator[Fragment]:
    """This rank's fragments of every trainable parameter."""
    stage = engine.zero_optimization_stage()
    flats = flat_partitions(engine)
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if stage == 0:
            yield Fragment(name, 0, parameter.numel(), parameter, 0)
        elif stage == 3:
            group, offset, size = engine.optimizer.grad_position[engine.optimizer.get_param_id(parameter)]
            start = size * torch.distributed.get_rank()
            numel = min(size, parameter.ds_numel - start)  # the last partitions may be padding
            if numel > 0:
                yield Fragment(name, start, numel, flats[group], offset)
        elif parameter._hp_mapping is not None:
            here, there = parameter._hp_mapping.lp_fragment_address, parameter._hp_mapping.hp_fragment_address
            flat = flats[parameter._hp_mapping.param_group_index]
            yield Fragment(name, here.start, here.numel, flat, there.start)


def create_state(engine: Any) -> None:
    """Create the optimiser's state before the first step, so it can be read, loaded or skipped from the start."""
    optimizer = engine.basic_optimizer
    by_muon = {tensor for group in optimizer.param_groups if group["muon"] for tensor in group["params"]}
    for flat in flat_partitions(engine):
        step = torch.zeros((), dtype=torch.float32, device=flat.device)  # where fused AdamW wants it
        kinds = MOMENTUM if flat in by_muon else MOMENTS
        moments = {kind: torch.zeros_like(flat, memory_format=torch.preserve_format) for kind in kinds}
        optimizer.state[flat] = {"step": step, **{kind: moment.detach() for kind, moment in moments.items()}}


def get_step(engine: Any) -> int:
    """Updates that Adam has made."""
    return int(engine.basic_optimizer.state[flat_partitions(engine)[0]]["step"])


def set_step(engine: Any, step: int) -> None:
    """Set Adam's count of updates in every partition."""
    for flat in flat_partitions(engine):
        engine.basic_optimizer.state[flat]["step"].fill_(float(step))


def local_tensors(engine: Any) -> dict[str, torch.Tensor]:
    """Copies of what this rank has to save, by ``name|kind|start``; under ZeRO-0 rank 0 saves for all."""
    if engine.zero_optimization_stage() == 0 and torch.distributed.get_rank() > 0:
        return {}
    copies = {
        f"{fragment.name}|{kind}|{fragment.start}": host_copy(fragment.view(kind, engine.basic_optimizer))
        for fragment in fragments(engine)
        for kind in fragment.kinds(engine.basic_optimizer)
    }
    wait_for_copies(engine.device)
    return copies


def load_optimizer(checkpoint: Path, engine: Any, state: dict[str, Any]) -> None:
    """Fill this rank's master weights and moments, whatever the world size and ZeRO stage of the writer.

    Raises:
        ValueError: the checkpoint lacks a piece of a trainable parameter (another model, or other frozen parts).
    """
    index = _index(checkpoint / "trainer")
    optimizer = engine.basic_optimizer
    for fragment in fragments(engine):
        for kind in fragment.kinds(optimizer):
            target, filled = fragment.view(kind, optimizer), 0
            for file, key, start, numel in index.get((fragment.name, kind), ()):
                first = max(start, fragment.start)
                last = min(start + numel, fragment.start + fragment.numel)
                if first < last:
                    with safe_open(file, framework="pt") as tensors:
                        piece = tensors.get_slice(key)[first - start : last - start]
                    target[first - fragment.start : last - fragment.start].copy_(piece)
                    filled += last - first
            if filled != fragment.numel:
                raise ValueError(
                    f"{checkpoint}: {kind} of {fragment.name} covers {filled} of {fragment.numel} elements; "
                    "was it written with the same model, the same parts frozen and the same optim.name?"
                )
    set_step(engine, state["adam_step"])


@torch.no_grad()
def refresh_weights(engine: Any) -> None:
    """Copy the fp32 master weights into the model's own; all ranks take part."""
    stage = engine.zero_optimization_stage()
    if stage in (1, 2):
        engine.optimizer.update_lp_params()
    elif stage == 3:
        for fragment in fragments(engine):
            parameter = engine.module.get_parameter(fragment.name)
            piece = fragment.view("master", engine.basic_optimizer)
            parameter.ds_tensor.data.view(-1)[: fragment.numel].copy_(piece)
        persistent = engine.optimizer.persistent_parameters  # small ones are kept whole on every rank
        if persistent:
            persistent[0].partition(persistent)
            persistent[0].all_gather(persistent)


def _index(trainer: Path) -> dict[tuple[str, str], list[tuple[Path, str, int, int]]]:
    """(parameter, kind) → where its pieces are: (file, key, start, number of elements)."""
    index: dict[tuple[str, str], list[tuple[Path, str, int, int]]] = defaultdict(list)
    for file, key, numel in _keys(trainer):
        name, kind, start = key.rsplit("|", 2)
        index[name, kind].append((file, key, int(start), numel))
    return index


def _keys(trainer: Path) -> Iterator[tuple[Path, str, int]]:
    for file in sorted(trainer.glob("optimizer-*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - a safetensors handle is no dict
                yield file, key, tensors.get_slice(key).get_shape()[0]
