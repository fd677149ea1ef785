"""The settings of one training run, field by field; a YAML of ``train/configs/`` fills them.

``kosmos train CONFIG run=DIR key=value …`` reads them with :func:`kosmos.settings.load`; the resolved values are kept
in ``DIR/config.yaml``. The DeepSpeed JSON is generated from here (``engine.deepspeed_config``), never written by hand.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from kosmos.tuning.settings import Tuning
from kosmos_data import DataConfig
from kosmos_data.config import validate

from .bounds import check_bounds


@dataclass
class DecoderConfig:
    """A causal language model of transformers that a fresh model's decoder begins as."""

    SHORT: ClassVar = "pretrained"
    pretrained: str
    """Folder, GGUF file (also ``package:NAME/FILE`` of an installed package), or a name of the hub. Tokenizer and chat
    template come with it, unless ``processor`` is set."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    grounding: bool = False
    """Append KOSMOS-2's tokens for phrases and boxes to the tokenizer."""


WEIGHTS = {"image": "vision_weights", "span": "span_weights"}
"""Modality → the setting that names its encoder's weights; ``encoder_weights`` has the others."""


@dataclass
class ModelConfig:
    """Which model is trained, and which part of it.

    The last blocks of CLIP are trained by ``overrides: {vision_config: {train_last_blocks: 1}}`` (KOSMOS-1 §3.2).
    """

    preset: str | None = None
    """Name of a preset (``tiny``, ``small``, ``kosmos-1`` …) or path of a config JSON: a fresh model."""
    decoder: DecoderConfig | None = None
    """A language model in the place of the preset's decoder; ``freeze: [model.decoder.*]`` leaves it as it is."""
    checkpoint: str | None = None
    """Folder of a Hugging Face checkpoint to start from instead (its config, weights and processor)."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Changes to the config, by its own (nested) names, e.g. ``text_config: {num_hidden_layers: 3}``."""
    vision_weights: str | None = None
    """File or folder with the vision tower's weights (open_clip, timm or CLIP), for a fresh model. A folder in
    open_clip's layout says what the tower is like; ``package:NAME/FOLDER`` lies in an installed package, and
    ``ViT-L-14/openai`` or ``OWNER/MODEL[@REVISION]`` on the hub. A fresh model with a tower needs them,
    for the tower is frozen; ``random`` says that a blind model is meant (a test of speed)."""
    span_weights: str | None = None
    """The same for the bidirectional encoder of text spans; a transformers folder says what the encoder is like."""
    encoder_weights: dict[str, str] = field(default_factory=dict)
    """The same for further modalities, by name: ``{audio: FOLDER}``; a transformers folder describes its encoder, and
    ``random`` says that a deaf one is meant."""
    freeze: list[str] = field(default_factory=list)
    """Shell patterns of parameter names to freeze, on top of what the model's own config freezes (the encoders)."""
    activation_checkpointing: bool = False
    """Recompute each decoder block in the backward pass: about a third more compute for much less memory."""
    compile: bool = False
    """torch.compile each decoder block. For GPUs: on a CPU every new layout of a packed row would be compiled anew."""

    @property
    def named_weights(self) -> dict[str, str]:
        """Modality → weights of its encoder, where they name a file or folder."""
        given = {**{name: getattr(self, field) for name, field in WEIGHTS.items()}, **self.encoder_weights}
        return {name: where for name, where in given.items() if where is not None and where != "random"}

    @property
    def has_text_encoder(self) -> bool:
        """Whether ``overrides`` describe a bidirectional text encoder."""
        return "span_encoder_config" in self.overrides

    def read_text(self, weights: Path, model_config: dict[str, Any]) -> None:
        """Take a text encoder of one's own: its weights, and what its transformers config says."""
        described = self.overrides.get("span_encoder_config", {})
        self.overrides = {**self.overrides, "span_encoder_config": {**described, "model_config": model_config}}
        self.span_weights = str(weights)

    def started_from(self, checkpoint: Path) -> ModelConfig:
        """Return the same settings for a run that starts from a checkpoint of a model that is made."""
        return replace(self, preset=None, checkpoint=str(checkpoint), overrides={}, span_weights=None)


@dataclass
class MuonConfig:
    """Muon (Jordan and others 2024) for the decoder's matrices, see :mod:`kosmos_train.muon`."""

    lr: float = 0.02
    """Peak learning rate of the matrices, in Muon's own scale; it rises and falls with ``optim.lr``."""
    momentum: float = 0.95
    """How much of the momentum a step keeps."""


@dataclass
class OptimConfig:
    """The optimiser and its learning rate; the defaults are KOSMOS-1's (§3.2)."""

    name: Literal["adamw", "muon"] = "adamw"
    """AdamW for all, or Muon for the decoder's matrices and AdamW for the rest (ZeRO 0 to 2)."""
    muon: MuonConfig = field(default_factory=MuonConfig)
    """Used with ``name: muon``."""
    lr: float = 2e-4
    """Peak learning rate."""
    part_lr: dict[str, float] = field(default_factory=dict)
    """Part of the model → its rate as a share of ``lr``, e.g. ``{vision: 0.1}`` where only the rest begins anew."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's β₁ and β₂."""
    eps: float = 1e-6
    """AdamW's ε."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    decay: Literal["matrices", "all"] = "matrices"
    """Decay matrices and embeddings only, or every parameter (what the released KOSMOS code does)."""
    warmup: int = 375
    """Updates of linear warm-up."""
    schedule: Literal["linear", "cosine", "constant", "wsd", "inverse_sqrt"] = "linear"
    """How the rate falls after warm-up; ``wsd`` stays at the peak but for the last ``decay_share`` of the steps."""
    decay_share: float = 0.2
    """Share of all steps in which ``wsd`` (warm-up, stable, decay; Hu and others 2024) falls, linearly."""
    final_ratio: float = 0.0
    """The rate at the end, as a share of ``lr``."""
    clip: float = 2.0
    """Largest norm of the whole gradient; 0 switches clipping off. KOSMOS-2's value; KOSMOS-1 names none."""


@dataclass
class EngineConfig:
    """How the computation is spread and in which precision."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """fp32, or bf16 with fp32 master weights. fp16 is not offered: xPos overflows it past 4,500 positions."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage: 0 replicates, 1 shards optimiser state, 2 also gradients, 3 also weights."""
    offload_optimizer: bool = False
    """Keep optimiser state in CPU memory (ZeRO ≥ 1)."""
    timeout_minutes: float = 30.0
    """A collective that waits longer than this ends the run (a peer is dead or cut off)."""
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """Merged last into the generated DeepSpeed JSON, for settings that have no field here."""


@dataclass
class CheckpointConfig:
    """When the state is kept, and how much of it."""

    every: int = 1000
    """Steps between checkpoints; the last step is always kept."""
    keep: int = 3
    """The newest so many stay; older ones are deleted once the new one is complete."""
    upload: str | None = None
    """fsspec URL of a folder that gets a copy of each checkpoint (``s3://bucket/run``); None: no copy."""


@dataclass
class Prompt:
    """One fixed prompt whose greedy answer is logged during training."""

    SHORT: ClassVar = "text"
    text: str = ""
    """What follows the images, e.g. ``Question: what shape is shown? Answer:``."""
    images: list[str] = field(default_factory=list)
    """Image files, shown before the text."""


@dataclass
class SampleConfig:
    """Greedy generations on fixed prompts."""

    every: int = 0
    """Steps between samples; 0: never."""
    prompts: list[Prompt] = field(default_factory=list)
    """The prompts; use held-out images."""
    max_new_tokens: int = 16
    """Length limit of each answer."""


@dataclass
class EvalTask:
    """One task of ``kosmos eval``, answered during training."""

    task: str
    """Its name (``kosmos eval tasks`` lists them) or the path of its YAML."""
    data: str
    """Folder that the task's paths are relative to."""
    shots: list[int] = field(default_factory=lambda: [0])
    """Numbers of demonstrations."""
    contexts: list[str] = field(default_factory=lambda: ["image+text"])
    """What the prompt contains: ``image+text``, ``shuffled``, ``text-only``, ``none``."""
    limit: int | None = None
    """So many items, the same ones every time; None: all."""


@dataclass
class EvalConfig:
    """Held-out loss and task scores during training; both are also taken at the last step."""

    every: int = 0
    """Steps between measurements of the held-out loss; 0: never."""
    batches: int = 8
    """How many of its steps' batches; the same ones every time, kept in memory."""
    data: DataConfig | None = None
    """The held-out corpora."""
    tasks_every: int = 0
    """Steps between evaluations on ``tasks``; 0: never."""
    tasks: list[EvalTask] = field(default_factory=list)
    """What is evaluated then; all ranks share the items. Per-sample logs go to ``RUN/eval/``."""
    batch_rows: int = 32
    """Prompts in a batch at most; the optimiser's state leaves less memory than ``kosmos eval`` alone has."""


@dataclass
class GuardConfig:
    """What stops, skips or rewinds; every decision is taken by all ranks together."""

    spike: float = 0.0
    """Skip the update when loss or gradient norm exceeds so many times its recent median; 0: only NaN and Inf."""
    window: int = 128
    """Steps in that median."""
    max_skipped: int = 10
    """So many skipped updates in a row: rewind or stop."""
    on_trouble: Literal["stop", "rewind"] = "stop"
    """``rewind`` loads the last checkpoint and goes on behind the bad batches; ``stop`` ends with the reason."""
    hang_minutes: float = 0.0
    """No finished step for so long: write every thread's stack to the run folder and abort; 0: never."""


@dataclass
class LogConfig:
    """What is shown; ``metrics.jsonl`` always has every step."""

    every: int = 10
    """Steps between lines on the terminal."""
    tracking: list[Literal["tensorboard", "trackio", "wandb"]] = field(default_factory=list)
    """Extra back ends, all writing under the run folder."""


@dataclass
class TrainConfig:
    """One run: model, data, schedule."""

    data: DataConfig
    """Corpora, weights, objectives, rows per step and per micro-batch; accumulation follows from them."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Which model."""
    tuning: Tuning | None = None
    """What learns of ``model.checkpoint`` where not all of it does: LoRA, prefixes, adapters (docs/tuning.md)."""
    processor: str | None = None
    """Folder with tokenizer and image processor; None: those of ``model.checkpoint``."""
    turn_end: Literal["line", "eos"] | None = None
    """What ends an answer of the trained model: the end of its ``line``, or its own ``</s>`` (``eos``), so that answers
    may have several lines. None: as the processor says; ``kosmos tune`` takes ``eos``."""
    steps: int = 300_000
    """Optimiser updates."""
    seed: int = 0
    """Initial weights, dropout and data order follow from it."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser and learning rate."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Precision and parallelism."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints."""
    samples: SampleConfig = field(default_factory=SampleConfig)
    """Generations on fixed prompts."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """Held-out loss and task scores."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    """Guards."""
    log: LogConfig = field(default_factory=LogConfig)
    """Terminal and trackers."""

    def micro_batches(self, world_size: int) -> int:
        """Micro-batches per step and process."""
        return self.data.rows_per_step // (world_size * self.data.rows_per_micro_batch)

    def check(self, world_size: int = 1) -> None:
        """Refuse what cannot work on ``world_size`` processes, with the reason.

        Raises:
            ValueError: naming the value and the fix.
        """
        for data in [self.data, *([self.eval.data] if self.eval.data else [])]:
            validate(data, world_size)
        model = self.model
        fresh = model.preset is not None or model.decoder is not None
        if fresh == (model.checkpoint is not None):
            raise ValueError(
                "give exactly one of model.preset or model.decoder (a fresh model), and model.checkpoint (go on from "
                "one)"
            )
        if self.processor is None and model.checkpoint is None and model.decoder is None:
            raise ValueError("processor is not set and there is no model.checkpoint or model.decoder to take it from")
        if self.tuning is not None:
            self.tuning.check()
            if model.checkpoint is None:
                raise ValueError("tuning needs model.checkpoint, the model that it changes")
        if self.engine.zero_stage == 0 and self.engine.precision == "bf16":
            raise ValueError("engine.zero_stage=0 keeps no fp32 master weights in bf16; use zero_stage=1 (same speed)")
        if self.engine.zero_stage == 0 and self.engine.offload_optimizer:
            raise ValueError("engine.offload_optimizer needs engine.zero_stage >= 1")
        if self.engine.zero_stage == 3 and self.model.compile:
            raise ValueError("model.compile with engine.zero_stage=3: ZeRO-3's hooks break the graphs; use stage 2")
        if self.optim.name == "muon" and (self.engine.zero_stage == 3 or self.engine.offload_optimizer):
            raise ValueError("optim.name=muon needs whole matrices: engine.zero_stage 0 to 2, no offload_optimizer")
        if self.optim.name == "muon" and not self.optim.lr > 0:
            raise ValueError(f"optim.lr={self.optim.lr} must be above 0 with optim.name=muon, whose rate follows it")
        if not 0 <= self.optim.muon.momentum < 1:
            raise ValueError(f"optim.muon.momentum={self.optim.muon.momentum} must lie from 0 to below 1")
        check_bounds(self)
        if not 0 <= self.optim.warmup <= self.steps:
            raise ValueError(
                f"optim.warmup={self.optim.warmup} must lie between 0 and steps={self.steps}, "
                f"for instance optim.warmup={self.steps // 10}"
            )
        if not 0 < self.optim.decay_share <= 1:
            raise ValueError(f"optim.decay_share={self.optim.decay_share} must lie above 0 and up to 1")
        if self.eval.every and self.eval.data is None:
            raise ValueError("eval.every is set without eval.data")
        if self.eval.tasks_every and not self.eval.tasks:
            raise ValueError("eval.tasks_every is set without eval.tasks")
        if self.samples.every and not self.samples.prompts:
            raise ValueError("samples.every is set without samples.prompts")
