"""What a run may tune, the ``tuning:`` section of a run's YAML."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

PEFT_METHODS = ("lora", "ia3")
PROMPT_METHODS = ("prefix", "prompt", "p_tuning")
OWN_METHODS = ("adapter", "fusion")

# Which settings a method reads, beside those that every method does.
READS: dict[str, tuple[str, ...]] = {
    "lora": ("targets", "rank", "alpha", "dropout", "dora", "rslora"),
    "ia3": ("targets",),
    "prefix": ("tokens", "projection", "encoder_size"),
    "prompt": ("tokens",),
    "p_tuning": ("tokens", "encoder", "encoder_size"),
    "adapter": ("placement", "reduction", "activation"),
    "fusion": ("adapters",),
}


@dataclass
class Tuning:
    """A method, and what it needs to know; the rest of the model is frozen."""

    SHORT: ClassVar = "method"
    method: Literal["lora", "ia3", "prefix", "prompt", "p_tuning", "adapter", "fusion"] = "lora"
    """``lora`` (arXiv 2106.09685), ``ia3`` (2205.05638), ``prefix`` (2101.00190), ``prompt`` (2104.08691), ``p_tuning``
    (2103.10385), ``adapter`` (1902.00751, 2005.00247) or ``fusion`` of adapters (2005.00247)."""
    targets: list[str] = field(default_factory=list)
    """LoRA, IA³: linear layers by the end of their name (``q_proj``) or by shell pattern (``*layers.0.*``). Empty: all
    of the decoder's blocks for LoRA; keys, values and the FFN's last layer for IA³."""
    rank: int = 16
    """LoRA: the rank r of the update."""
    alpha: float | None = None
    """LoRA: the update is scaled by alpha / r, with ``rslora`` by alpha / √r. None: alpha = r."""
    dropout: float = 0.0
    """LoRA: dropout in front of the update."""
    dora: bool = False
    """LoRA: learn magnitude and direction apart (DoRA, arXiv 2402.09353)."""
    rslora: bool = False
    """LoRA: scale by 1 / √r (rsLoRA, arXiv 2312.03732)."""
    tokens: int = 16
    """Prefix, prompt, P-tuning: number of virtual tokens; each document sees its own."""
    projection: bool = True
    """Prefix: learn the prefix through the paper's re-parametrising MLP, of which only the result is kept."""
    encoder: Literal["MLP", "LSTM"] = "MLP"
    """P-tuning: what makes the virtual tokens."""
    encoder_size: int | None = None
    """Prefix, P-tuning: width of that MLP or LSTM. None: the decoder's width."""
    placement: Literal["pfeiffer", "houlsby"] = "pfeiffer"
    """Adapter: one a block, behind the FFN's skip connection (Pfeiffer), or two, on what attention and FFN put out."""
    reduction: float = 16.0
    """Adapter: the decoder's width over that of the bottleneck."""
    activation: str = "relu"
    """Adapter: the function between the two matrices."""
    adapters: list[str] = field(default_factory=list)
    """Fusion: runs or folders of the adapters to be fused, two or more of one placement; they stay as they are."""
    also: list[str] = field(default_factory=list)
    """Shell patterns of the model's own parameters that learn as well, e.g. ``model.connector.*``; saved whole."""

    def check(self) -> None:
        """Refuse what cannot work with any model.

        Raises:
            ValueError: naming the value and the fix.
        """
        default = Tuning(self.method)
        for setting in fields(self):
            name, value = setting.name, getattr(self, setting.name)
            if value != getattr(default, name) and name not in ("method", "also", *READS[self.method]):
                raise ValueError(
                    f"tuning.{name}={value} means nothing to method {self.method!r}, which reads "
                    f"{', '.join(READS[self.method])} and also"
                )
        for name in ("rank", "tokens", "reduction", *(("encoder_size",) if self.encoder_size is not None else ())):
            if not getattr(self, name) >= 1:
                raise ValueError(f"tuning.{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"tuning.dropout={self.dropout} must be at least 0 and below 1")
        if self.method == "fusion" and len(self.adapters) < 2:
            raise ValueError(f"tuning.adapters={self.adapters}: a fusion needs two or more runs of method adapter")

    def asked(self) -> dict[str, Any]:
        """The settings that the method reads, as plain values."""
        return {name: getattr(self, name) for name in ("method", *READS[self.method], "also")}
