"""One optimiser step on DeepSpeed: any ZeRO stage, any number of processes, the same numbers.

The loss of a step is the sum of the weighted token losses over *all* ranks and micro-batches divided by the sum of all
their weights, so that splitting a batch differently changes nothing (tests/train/test_engine.py). For that the weights
are counted over the ranks before the first forward pass, and the caller, not DeepSpeed, owns the accumulation boundary.

Differs from the paper: KOSMOS-1 was trained with data parallelism in fp16; here ZeRO shards the state, in bf16 or fp32.
"""

from __future__ import annotations

import zlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from kosmos.cost import part_names, part_of
from kosmos.modalities import MODALITIES, normalize_pixels
from kosmos.tuning.methods import is_added

from .config import EngineConfig, TrainConfig
from .distributed import World
from .fragments import create_state, fragments, load_optimizer, refresh_weights
from .guards import SpikeGuard
from .host_copy import host_copy, wait_for_copies
from .muon import matrices
from .optim import PartNorms, VetoAdamW, is_for_muon, parameter_groups, unclipped

Counts: TypeAlias = dict[tuple[str, str], float]
"""Numbers of a step by kind and, where there are several, by source, modality or vote."""


@dataclass
class StepResult:
    """What one step did, equal on every rank."""

    loss: float
    """Weighted mean token loss over the whole step, nats."""
    tokens: int
    """Tokens read, without padding."""
    supervised: int
    """Tokens with a label."""
    source_loss: dict[str, float]
    """Mean loss of each source that had supervised tokens."""
    source_tokens: dict[str, int]
    """Tokens read from each source."""
    grad_norm: float
    """Norm of the whole gradient before clipping."""
    skipped: str | None = None
    """Why the update was skipped, or None."""
    encoded: dict[str, int] = field(default_factory=dict)
    """What the encoder of each modality read: ``image`` images, ``span`` tokens of text spans, their BOS included."""
    part_norms: dict[str, float] = field(default_factory=dict)
    """The same by part of the model; every ``log.every`` steps."""
    votes: dict[str, float] = field(default_factory=dict)
    """The ``votes`` of all ranks, summed."""


def deepspeed_config(config: TrainConfig, world_size: int) -> dict[str, Any]:
    """The DeepSpeed JSON that ``config`` stands for, ``engine.deepspeed`` merged in last."""
    engine = config.engine
    # Stage 2 sums gradients while backward goes on; stage 1 in bf16 sums them once a step and cannot.
    overlap = engine.zero_stage == 2
    zero: dict[str, Any] = {"stage": engine.zero_stage, "overlap_comm": overlap, "contiguous_gradients": True}
    if engine.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    generated: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.data.rows_per_micro_batch,
        "gradient_accumulation_steps": config.micro_batches(world_size),
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.optim.clip if engine.zero_stage else 0.0,  # VetoAdamW clips without ZeRO
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "timers": {"throughput": {"enabled": False}},  # it waits for the device before every forward pass
    }
    if engine.precision == "bf16":
        generated["bf16"] = {"enabled": True}
        generated["data_types"] = {"grad_accum_dtype": "fp32"}
    return _merge(generated, engine.deepspeed)


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def dtype_of(engine: EngineConfig) -> torch.dtype:
    """The dtype of weights and activations."""
    return torch.bfloat16 if engine.precision == "bf16" else torch.float32


class Engine:
    """The model inside DeepSpeed, with :meth:`step` and :meth:`evaluate`."""

    def __init__(self, model: Any, processor: Any, config: TrainConfig, world: World, sources: list[str]) -> None:
        import deepspeed

        self.config, self.world, self.sources = config, world, sources
        self.image_processor = processor.image_processor
        self.dtype = dtype_of(config.engine)
        self.guard = SpikeGuard(config.guard)
        self.optimizer = VetoAdamW(parameter_groups(model, config.optim), config.optim)
        self.deepspeed, wrapped, _, _ = deepspeed.initialize(
            model=model, optimizer=self.optimizer, config=deepspeed_config(config, world.size)
        )
        if config.engine.zero_stage:
            self.optimizer.norm_source = lambda: wrapped._global_grad_norm
        create_state(self.deepspeed)
        shapes = {name: value.shape for name, value in model.named_parameters() if value.requires_grad}
        mine = [name for name, shape in shapes.items() if is_for_muon(name, shape, config.optim)]
        self.optimizer.matrices = matrices(
            fragments(self.deepspeed), {name: shapes[name] for name in mine}, config.engine.zero_stage
        )
        for fragment in fragments(self.deepspeed):
            pieces = self.optimizer.pieces.setdefault(fragment.flat, [])
            pieces.append((part_of(fragment.name), fragment.offset, fragment.numel))

    @property
    def model(self) -> Any:
        """The bare model."""
        return self.deepspeed.module

    def step(
        self, batch: Any, number: int, rate: float, votes: dict[str, float], error: Exception | None = None
    ) -> StepResult:
        """Forward, backward and update for one step of all ranks; ``number`` is the 1-based step it completes.

        ``votes`` are numbers of this rank (a received signal, unreadable samples) that travel with the counts and come
        back summed over the ranks: that costs no extra round. A rank that could not read its batch gives ``error``
        instead (``batch`` None), and all ranks raise together.

        Raises:
            ValueError: no token of the whole step is supervised; or the error of a rank, see :meth:`World.agree`.
        """
        raised = {("error", ""): float(error is not None)}
        ballots = {("vote", name): value for name, value in votes.items()}
        counts = self.world.sum({**self._count_local(batch), **ballots, **raised})
        if counts["error", ""]:
            self.world.agree(error, "reading its data")
        result = self._result(counts)
        if counts["weight", ""] <= 0:
            raise ValueError(
                f"step {number}: no supervised token in {result.tokens} tokens on {self.world.size} processes; "
                f"check the objective and `supervised` flags of the data (kosmos data inspect shows them)"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_share"]
        self.deepspeed.train()
        losses = torch.zeros(len(self.sources) + 1, dtype=torch.float64, device=self.world.device)
        for index, (inputs, sources) in enumerate([self._moved(micro) for micro in batch.micro_batches]):
            seed_everything(self.config.seed, number, self.world.rank, index)
            output = self.deepspeed(**inputs, num_items_in_batch=counts["weight", ""])
            # DeepSpeed averages gradients over the ranks; ours are shares of one sum.
            self.deepspeed.backward(output.loss * self.world.size, scale_wrt_gas=False)
            losses += _losses(output, inputs, sources, len(losses))
        self._fill_losses(result, self.world.sum(_named("loss", self.sources, losses)), counts)
        self._update(result, measured=number % self.config.log.every == 0)
        return result

    def _update(self, result: StepResult, measured: bool) -> None:
        bad_loss = self.guard.judge_loss(result.loss)
        # What no sample of any rank reached has a gradient of zeros, from the smallest input, and is to stay as it is.
        absent = [modality for name, modality in MODALITIES.items() if not result.encoded[name]]
        reached = {part for name, kind in MODALITIES.items() if result.encoded[name] for part in kind.parts}
        unreached = {part for modality in absent for part in modality.parts} - reached
        norms = PartNorms(self.optimizer.pieces) if measured else None
        self.optimizer.begin(lambda norm: bad_loss or self.guard.judge_norm(norm), unreached, norms)
        self.deepspeed.step()
        norm = self.deepspeed.get_global_grad_norm() if self.config.engine.zero_stage else self.optimizer.norm
        result.grad_norm = float("nan") if norm is None else float(norm)
        result.skipped = bad_loss or self.optimizer.reason
        if result.skipped is None and not self.deepspeed.was_step_applied():
            result.skipped = "gradient is not finite"
        self.guard.record(result.loss, result.grad_norm, result.skipped)
        if norms is not None and result.skipped is None:
            squares = {part: float(norms.squares.get(part, 0.0)) for part in part_names()}
            # ZeRO-0 has the whole gradient on every rank, the other stages have parts of it
            whole = self.world.sum(squares) if self.config.engine.zero_stage else squares
            result.part_norms = unclipped(whole, result.grad_norm, self.config.optim.clip)

    @torch.no_grad()
    def evaluate(self, batches: list[Any], sources: list[str]) -> dict[str, float]:
        """Mean loss over held-out batches, in total (``loss``) and by source; nothing is updated.

        Args:
            sources: the names of the held-out corpora, which need not be those of the training.

        Raises:
            ValueError: no token of the batches is supervised.
        """
        self.deepspeed.eval()
        size = len(sources) + 1
        losses = torch.zeros(size, dtype=torch.float64, device=self.world.device)
        weights = torch.zeros(size, dtype=torch.float64)
        for micro in (micro for batch in batches for micro in batch.micro_batches):
            inputs, placed = self._moved(micro)
            output = self.deepspeed(**inputs, num_items_in_batch=1.0)
            losses += _losses(output, inputs, placed, size)
            weights += _by_source(micro["loss_weight"].double(), micro["source_ids"], size)
        sums = self.world.sum({**_named("loss", sources, losses), **_named("weight", sources, weights)})
        if sums["weight", ""] <= 0:
            raise ValueError("eval.data: no supervised token in the held-out batches")
        reached = [name for name in ("", *sources) if sums["weight", name] > 0]
        return {name or "loss": sums["loss", name] / sums["weight", name] for name in reached}

    def full_weights(self, wanted: bool, learnt_only: bool = False) -> dict[str, torch.Tensor]:
        """The whole state dict in CPU memory of each rank that wants it (empty elsewhere); all ranks take part.

        Tied weights are still tied. ``learnt_only`` leaves out the frozen model of a tuning.
        """
        import deepspeed

        copies: dict[int, torch.Tensor] = {}
        weights = {}
        for name, value in self.model.state_dict(keep_vars=True).items():
            if learnt_only and not value.requires_grad and not is_added(name):
                continue
            partitioned = hasattr(value, "ds_id")
            with deepspeed.zero.GatheredParameters(value, enabled=partitioned):
                if wanted:
                    if id(value) not in copies:
                        copies[id(value)] = host_copy(value)
                    weights[name] = copies[id(value)]
                if partitioned:  # what was gathered is freed
                    wait_for_copies(self.world.device)
        wait_for_copies(self.world.device)
        return weights

    def uncompiled(self) -> AbstractContextManager[Any]:
        """Run compiled blocks as they are written: prompts of any length would compile them again and again."""
        return torch.compiler.set_stance("force_eager") if self.config.model.compile else nullcontext()

    def restore(self, folder: Path, state: dict[str, Any]) -> None:
        """Take master weights and optimiser state from a checkpoint, and the weights that follow from them."""
        load_optimizer(folder, self.deepspeed, state)
        refresh_weights(self.deepspeed)

    def close(self) -> None:
        """Free DeepSpeed's hooks and buffers, so that another run can follow in the same process."""
        self.deepspeed.destroy()

    def prepare(self, batch: Any) -> None:
        """Do for a batch, in place, what can be done before its step: describe its rows, and pin them for the GPU.

        May be called in another thread; :meth:`step` does not need it.

        Raises:
            ValueError: ids, positions or inputs that the model does not read.
        """
        if on_gpu := self.world.device.type == "cuda":
            torch.cuda.set_device(self.world.device)  # of this thread, whose own would be the first one
        for micro in batch.micro_batches:
            micro["layout"] = self.model.model.describe_rows(**micro)
            if on_gpu:
                for name, value in micro.items():
                    micro[name] = value.map(Tensor.pin_memory) if name == "layout" else value.pin_memory()

    def _moved(self, micro: dict[str, Any]) -> tuple[dict[str, Any], torch.Tensor]:
        """Model arguments of one micro-batch, and its ``source_ids``, on the device; images are normalised here."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(self.world.device, non_blocking=True)

        layout = micro.get("layout") or self.model.model.describe_rows(**micro)
        moved: dict[str, Any] = {name: move(tensor) for name, tensor in micro.items() if name != "layout"}
        sources = moved.pop("source_ids")
        moved = normalize_pixels(moved, self.image_processor, self.dtype)
        # Every rank must touch every trainable parameter, also with text-only rows: else ZeRO waits or aborts.
        return {**moved, "layout": layout.map(move), "dummy_image": True}, sources

    def _count_local(self, batch: Any) -> Counts:
        """Weight and tokens in total and by source, supervised tokens, what each modality's encoder reads."""
        size = len(self.sources) + 1
        weight = torch.zeros(size, dtype=torch.float64)
        tokens = torch.zeros(size, dtype=torch.float64)
        supervised, encoded = 0, dict.fromkeys(MODALITIES, 0)
        for micro in batch.micro_batches if batch is not None else ():
            sources = micro["source_ids"]
            weight += _by_source(micro["loss_weight"].double(), sources, size)
            tokens += _by_source(torch.ones(sources.shape, dtype=torch.float64), sources, size)
            supervised += int((micro["loss_weight"] > 0).sum())
            for name, modality in MODALITIES.items():
                encoded[name] += modality.count(micro)
        counts = _named("weight", self.sources, weight) | _named("tokens", self.sources, tokens)
        return {**counts, ("supervised", ""): supervised, **{("encoded", name): n for name, n in encoded.items()}}

    def _result(self, counts: Counts) -> StepResult:
        tokens = {source: int(counts["tokens", source]) for source in self.sources}
        return StepResult(
            loss=float("nan"),
            tokens=sum(tokens.values()),
            supervised=int(counts["supervised", ""]),
            source_loss={},
            source_tokens=tokens,
            grad_norm=float("nan"),
            encoded={name: int(counts["encoded", name]) for name in MODALITIES},
            votes={name: count for (kind, name), count in counts.items() if kind == "vote"},
        )

    def _fill_losses(self, result: StepResult, losses: Counts, counts: Counts) -> None:
        result.loss = losses["loss", ""] / counts["weight", ""]
        for source in self.sources:
            if (weight := counts["weight", source]) > 0:
                result.source_loss[source] = losses["loss", source] / weight


def _losses(output: Any, inputs: dict[str, Any], sources: torch.Tensor, size: int) -> torch.Tensor:
    """Weighted loss sums (size,): total first, then by source; stays on the device."""
    return _by_source(output.token_loss.detach().double() * inputs["loss_weight"], sources, size)


def _named(kind: str, sources: list[str], sums: torch.Tensor) -> Counts:
    """The sums of :func:`_by_source` by name; that of the total is empty."""
    return {(kind, name): count for name, count in zip(("", *sources), sums.tolist(), strict=True)}


def _by_source(values: torch.Tensor, sources: torch.Tensor, size: int) -> torch.Tensor:
    """Sums (size,) of ``values`` (B, T): over all tokens first, then by source (-1: padding, only in the total).

    On a GPU without waiting for it, as ``bincount`` would.
    """
    sums = values.new_zeros(size).index_add_(0, (sources + 1).flatten(), values.flatten())
    sums[0] = values.sum()
    return sums


def seed_everything(seed: int, step: int, rank: int, index: int) -> None:
    """Seed dropout as a function of where we are, so that a resumed run draws what the uninterrupted one drew."""
    torch.manual_seed(zlib.crc32(f"{seed}/{step}/{rank}/{index}".encode()))
