"""AdamW that can sit a step out, in whole or in part, norms by part, parameter groups, the learning rate of a step.

With ``optim.name: muon`` the decoder's matrices are moved by Muon (:mod:`kosmos_train.muon`) instead.

KOSMOS-1 §3.2: AdamW, betas (0.9, 0.98), weight decay 0.01, learning rate 2e-4, 375 warm-up steps, linear to zero.

The veto is how a bad step is skipped under every ZeRO stage: DeepSpeed calls ``step`` on its own partitions of the
parameters, so refusing there leaves weights, moments and step counts untouched on every rank, in any precision.

What no sample of a step reached is left alone as well. A text-only step gives image encoder and connector gradients of
zero (every rank has to have a gradient), with which Adam would still decay weights and moments.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeAlias

import torch

from kosmos.cost import part_names, part_of

from . import muon
from .config import OptimConfig

Pieces: TypeAlias = dict[torch.Tensor, list[tuple[str, int, int]]]
"""What lies where in each tensor of the optimiser: (part of the model, offset, number of elements)."""


class PartNorms:
    """Measures a step's gradient by part of the model: ``squares`` are the sums of squares of what this rank holds."""

    def __init__(self, pieces: Pieces) -> None:
        self.pieces = pieces
        self.squares: dict[str, torch.Tensor] = {}

    def measure(self, tensors: Iterable[torch.Tensor]) -> None:
        """Add the gradients of these tensors of the optimiser."""
        for tensor in tensors:
            for part, offset, numel in self.pieces.get(tensor, ()):
                assert tensor.grad is not None
                square = tensor.grad.view(-1).narrow(0, offset, numel).double().square().sum()
                self.squares[part] = self.squares.get(part, 0.0) + square


def unclipped(squares: dict[str, float], norm: float, clip: float) -> dict[str, float]:
    """Norms by part before clipping, from the squares after it; ``norm`` is that of the whole gradient before it."""
    factor = max(1.0, norm / clip) if clip > 0 else 1.0
    return {part: factor * square**0.5 for part, square in squares.items() if square}


class VetoAdamW(torch.optim.AdamW):
    """torch's AdamW with ``veto``: asked once per optimiser step for a reason to skip it.

    ``veto(norm)`` gets the global gradient norm before clipping and returns a reason or None. Under ZeRO the norm comes
    from DeepSpeed (``norm_source``); without ZeRO it is measured and clipped here, as DeepSpeed keeps no record of it.

    Parts that a step did not reach keep weights and moments bit for bit. Adam's count of updates, which its bias
    correction goes by, is one for all that lies in a tensor of the optimiser (under ZeRO a flat partition of many
    parameters), so it also counts the steps that did not reach a part.
    """

    def __init__(self, groups: list[dict[str, Any]], config: OptimConfig) -> None:
        super().__init__(groups, config.lr, config.betas, config.eps, config.weight_decay, fused=True)
        self.momentum = config.muon.momentum
        self.clip = config.clip
        self.veto: Callable[[float], str | None] = lambda norm: None
        self.norm_source: Callable[[], float] | None = None
        self.norm = math.nan
        self.reason: str | None = None
        self.pieces: Pieces = {}
        self.matrices: list[muon.Matrix] = []
        self.unreached: Collection[str] = ()
        self.norms: PartNorms | None = None
        self._decided = False

    def begin(
        self,
        veto: Callable[[float], str | None],
        unreached: Collection[str] = (),
        norms: PartNorms | None = None,
    ) -> None:
        """Say how the coming step is judged; called before DeepSpeed's ``step``.

        Args:
            veto: see the class.
            unreached: parts that no sample of the step reached, on any rank: they stay as they are.
            norms: measures the gradient of the step, unless it is vetoed.
        """
        self.veto, self._decided, self.reason, self.norm = veto, False, None, math.nan
        self.unreached, self.norms = unreached, norms

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of the groups that DeepSpeed has filled, unless vetoed (it may call this once per group)."""
        if not self._decided:
            self.norm = self._clip() if self.norm_source is None else float(self.norm_source())
            self.reason = self.veto(self.norm)
            self._decided = True
        if self.reason is not None:
            return
        if self.norms is not None:
            self.norms.measure(self._updated())
        kept = self._copy_unreached() if self.unreached else []
        by_muon = {tensor: tensor.grad for group in self._muon_groups() for tensor in group["params"]}
        for group in self._muon_groups():
            muon.update(group, self.momentum, self.matrices, self.state)
        for tensor in by_muon:
            tensor.grad = None  # AdamW passes over it
        super().step(closure)
        for tensor, gradient in by_muon.items():
            tensor.grad = gradient
        for view, before in kept:
            view.copy_(before)

    def _muon_groups(self) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["muon"]]

    def _updated(self) -> list[torch.Tensor]:
        """The tensors that this call of ``step`` changes."""
        return [tensor for group in self.param_groups for tensor in group["params"] if tensor.grad is not None]

    def _copy_unreached(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Weights and moments of the parts that the step did not reach: live views, and copies to be put back.

        A flat partition is updated as one tensor, and what it holds of such a part is anywhere in it, so the pieces are
        put back after the update. That is exact, where undoing the decay would round; DeepSpeed copies the master
        weights into the model's own only after this.
        """
        kept = []
        for tensor in self._updated():
            for part, offset, numel in self.pieces.get(tensor, ()):
                if part in self.unreached:
                    moments = [moment for kind, moment in self.state[tensor].items() if kind != "step"]
                    for whole in (tensor, *moments):
                        view = whole.view(-1).narrow(0, offset, numel)
                        kept.append((view, view.clone()))
        return kept

    def _clip(self) -> float:
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        return float(torch.nn.utils.clip_grad_norm_(parameters, self.clip if self.clip > 0 else math.inf))


def freeze(model: torch.nn.Module, patterns: Iterable[str]) -> None:
    """Freeze the parameters whose names match one of the shell patterns.

    Raises:
        ValueError: a pattern that matches no parameter.
    """
    named = dict(model.named_parameters())
    for pattern in patterns:
        matched = fnmatch.filter(named, pattern)
        if not matched:
            raise ValueError(f"model.freeze: {pattern!r} matches no parameter; names look like {next(iter(named))!r}")
        for name in matched:
            named[name].requires_grad_(False)


def parameter_groups(model: torch.nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Return the trainable parameters in groups of one weight decay, one ``lr_share`` (``part_lr``), one optimiser.

    ``decay: matrices`` spares biases, norms and other one-dimensional parameters; ``decay: all`` is what the released
    KOSMOS code does (fairseq's Adam decays everything). Frozen parameters are in no group.

    Raises:
        ValueError: no parameter is left to train, or ``part_lr`` names a part that the model does not have, or has a
            negative rate. A part that is frozen may be named: the same settings serve where it learns.
    """
    there = {part_of(name) for name, _ in model.named_parameters()}
    parts = [part for part in part_names() if part in there]
    for part, share in config.part_lr.items():
        if part not in parts or share < 0:
            raise ValueError(
                f"optim.part_lr: {part}={share}; this model's parts are {', '.join(parts)}, shares 0 or more"
            )
    groups: dict[tuple[float, float, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            by_muon = is_for_muon(name, parameter.shape, config)
            share = config.part_lr.get(part_of(name), 1.0) * (config.muon.lr / config.lr if by_muon else 1.0)
            decayed = config.decay == "all" or parameter.ndim >= 2
            groups.setdefault((share, config.weight_decay if decayed else 0.0, by_muon), []).append(parameter)
    if not groups:
        raise ValueError("model.freeze leaves no parameter to train")
    return [
        {"params": groups[kind], **dict(zip(("lr_share", "weight_decay", "muon"), kind, strict=True))}
        for kind in sorted(groups, reverse=True)  # whatever the order of the parts: the same groups at every resume
    ]


def is_for_muon(name: str, shape: torch.Size, config: OptimConfig) -> bool:
    """Whether Muon moves a parameter: the decoder's matrices, not the embeddings, whose rows are looked up.

    Nor the classifier of attention routing, whose last matrix is one row.
    """
    return config.name == "muon" and part_of(name) == "decoder" and len(shape) == 2 and ".routing." not in name


def learning_rate(step: int, config: OptimConfig, steps: int) -> float:
    """The rate of update number ``step`` (1-based).

    Up to ``warmup``: lr · step / warmup. After it, from lr down to ``lr · final_ratio`` one update past the last, so
    that no update is spent at rate zero (fairseq's polynomial decay of power 1, which KOSMOS used).
    """
    if config.warmup and step <= config.warmup:
        return config.lr * step / config.warmup
    if config.schedule == "inverse_sqrt":  # as fairseq has it: lr · sqrt(warmup / step)
        return config.lr * max(config.final_ratio, math.sqrt(max(1, config.warmup) / step))
    begin = max(config.warmup, steps - round(steps * config.decay_share)) if config.schedule == "wsd" else config.warmup
    progress = min(1.0, max(0, step - 1 - begin) / max(1, steps - begin))
    floor = config.final_ratio
    if config.schedule in ("linear", "wsd"):
        return config.lr * (floor + (1 - floor) * (1 - progress))
    if config.schedule == "cosine":
        return config.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
    return config.lr
