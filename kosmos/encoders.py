"""The frozen encoders: vision towers (open_clip, timm, transformers' CLIP) and the bidirectional text encoder.

A vision tower maps normalised pixels to one feature a token, (I, 3, S, S) to (I, P, C), *after the final norm over all
tokens* (class token and patches), without the projection to CLIP's joint space: KOSMOS-1 section 2.2, and the released
KOSMOS-2 code, which then divides every feature by its L2 norm (``l2_normalize``).

Encoders stay in eval mode: a frozen batch norm must not drift, and the papers train them without dropout. Only the
last ``train_last_blocks`` blocks receive gradients; with none the tower runs under ``no_grad``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_kosmos import KosmosSpanEncoderConfig
from .encoder_configs import KosmosVisionConfig
from .optional import needed
from .span_rows import SpanRows, first_position, lay_in_rows
from .tower_attention import join_attention


class Encoder(nn.Module):
    """What vision towers and the text encoder share: freezing, eval mode, gradients only where something trains."""

    encoder: nn.Module
    width: int

    def freeze(self, train_last_blocks: int, final_norm: nn.Module | None = None) -> None:
        """Freeze all but the last blocks (and ``final_norm``).

        Raises:
            ValueError: more blocks asked for than there are, or an encoder whose blocks are not a list.
        """
        self.train_last_blocks, self.trained_norm = train_last_blocks, [final_norm] if final_norm is not None else []
        self.refreeze()

    def after_loading(self, missing: bool) -> None:
        """Mend what transformers' loading leaves undone here: frozen parameters were replaced by learning ones."""
        self.refreeze()

    def refreeze(self) -> None:
        """Apply what ``freeze`` was told."""
        train_last_blocks = self.train_last_blocks
        self.requires_grad_(False)
        self.learns = train_last_blocks > 0 or bool(self.trained_norm)
        if train_last_blocks:
            blocks = self.blocks()
            if not 0 < train_last_blocks <= len(blocks):
                raise ValueError(f"train_last_blocks is {train_last_blocks}, but the encoder has {len(blocks)} blocks")
            for block in blocks[len(blocks) - train_last_blocks :]:
                block.requires_grad_(True)
        for norm in self.trained_norm:  # a list, so that it is not registered as a second child
            norm.requires_grad_(True)

    def blocks(self) -> list[nn.Module]:
        """Return the blocks from first to last: the longest list of modules that the encoder holds."""
        lists = [module for module in self.encoder.modules() if isinstance(module, (nn.ModuleList, nn.Sequential))]
        named = [module for name, module in self.encoder.named_modules() if name.split(".")[-1] in BLOCK_NAMES]
        candidates = [module for module in named if module in lists] or lists
        return list(max(candidates, key=len)) if candidates else []

    def train(self, mode: bool = True) -> Encoder:
        """Stay in eval mode whatever the model is set to."""
        return super().train(False)

    @contextlib.contextmanager
    def gradients(self) -> Iterator[None]:
        """Record gradients only if a block trains."""
        with torch.set_grad_enabled(self.learns and torch.is_grad_enabled()):
            yield


BLOCK_NAMES = ("resblocks", "blocks", "layers", "layer", "stages")


class VisionTower(Encoder):
    """Base of the three backends; a backend sets ``encoder`` and ``width`` and writes ``tokens``."""

    def __init__(self, config: KosmosVisionConfig) -> None:
        super().__init__()
        self.config = config

    def tokens(self, pixels: Tensor) -> Tensor:
        """Return features after the final norm, (I, P, C)."""
        raise NotImplementedError

    def final_norm(self) -> nn.Module | None:
        """Return the norm over the last block's output, where the backend has one."""
        return None

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Normalised pixels (I, 3, S, S) to features (I, P, C).

        Raises:
            ValueError: pixels that are not floating point, or of another shape than the tower's.
        """
        check_pixels(pixel_values, self.config.image_size)
        with self.gradients():
            features = self.tokens(pixel_values.to(next(self.encoder.parameters()).dtype))
            return F.normalize(features, dim=-1) if self.config.l2_normalize else features

    def after_loading(self, missing: bool) -> None:
        """Also give a foreign encoder its own initial weights if the checkpoint had none, and its unsaved tables."""
        if missing and not isinstance(self, ClipTower):
            with torch.device("cpu"):
                self.encoder.load_state_dict(TOWERS[self.config.backend](self.config).encoder.state_dict())
        for name, table in getattr(self, "tables", {}).items():
            self.encoder.get_buffer(name).copy_(table)
        super().after_loading(missing)

    @torch.no_grad()
    def count_tokens(self) -> int:
        """Return P by running one empty image (on the meta device this costs nothing)."""
        parameter = next(self.encoder.parameters())
        size = self.config.image_size
        return self.tokens(torch.zeros(1, 3, size, size, dtype=parameter.dtype, device=parameter.device)).shape[1]


class OpenClipTower(VisionTower):
    """An open_clip vision transformer, built from its model JSON."""

    def __init__(self, config: KosmosVisionConfig) -> None:
        super().__init__(config)
        fields = config.model_config
        _require(fields, "embed_dim", "vision_cfg")
        vision = fields["vision_cfg"]
        if isinstance(vision.get("layers", 12), (list, tuple)) or "timm_model_name" in vision:
            raise ValueError("open_clip: only its vision transformers are read; a timm_model_name needs backend 'timm'")
        build = needed("open_clip.model", "open_clip_torch")._build_vision_tower
        self.encoder = build(fields["embed_dim"], vision, fields.get("quick_gelu", False))
        self.encoder.proj = None
        join_attention(self.encoder)
        self.width = self.encoder.ln_post.normalized_shape[0]
        keep_initialisation(self.encoder)

    def tokens(self, pixels: Tensor) -> Tensor:
        """All tokens after ``ln_post``, class token first."""
        return self.encoder.ln_post(self.encoder.transformer(self.encoder._embeds(pixels)))

    def final_norm(self) -> nn.Module | None:
        """open_clip's ``ln_post``."""
        return self.encoder.ln_post


class ClipTower(VisionTower):
    """transformers' CLIPVisionModel; KOSMOS-2's public weights load into it unrenamed."""

    def __init__(self, config: KosmosVisionConfig) -> None:
        super().__init__(config)
        from transformers import CLIPVisionConfig, CLIPVisionModel

        self.encoder = CLIPVisionModel(CLIPVisionConfig(**config.model_config))
        self.width = self.encoder.config.hidden_size

    def tokens(self, pixels: Tensor) -> Tensor:
        """All tokens after ``post_layernorm``, which CLIP itself applies to the class token only."""
        return self.encoder.post_layernorm(self.encoder(pixels).last_hidden_state)

    def final_norm(self) -> nn.Module | None:
        """CLIP's ``post_layernorm``."""
        return self.encoder.post_layernorm


class TimmTower(VisionTower):
    """Any timm model with ``forward_features``: transformers give their tokens, CNNs the cells of their last map."""

    def __init__(self, config: KosmosVisionConfig) -> None:
        super().__init__(config)
        timm = needed("timm", "timm")
        fields = dict(config.model_config)
        _require(fields, "model_name")
        # on the CPU even inside from_pretrained's meta context: timm's unsaved tables (relative positions) need values
        with torch.device("cpu"):
            self.encoder = timm.create_model(**{"pretrained": False, "num_classes": 0, **fields})
        saved = self.encoder.state_dict()
        self.tables = {name: table.clone() for name, table in self.encoder.named_buffers() if name not in saved}
        self.width = self.encoder.num_features
        keep_initialisation(self.encoder)

    def tokens(self, pixels: Tensor) -> Tensor:
        """timm's own ``forward_features``, maps laid out row by row."""
        features = self.encoder.forward_features(pixels)
        if features.ndim == 3:
            return features
        if getattr(self.encoder, "output_fmt", "NCHW") == "NHWC":
            return features.flatten(1, 2)
        return features.flatten(2).transpose(1, 2)

    def final_norm(self) -> nn.Module | None:
        """timm's ``norm``, where there is one."""
        return getattr(self.encoder, "norm", None)


TOWERS: dict[str, type[VisionTower]] = {"open_clip": OpenClipTower, "timm": TimmTower, "clip": ClipTower}


def build_vision_tower(config: KosmosVisionConfig) -> VisionTower:
    """Return the tower of ``config.backend`` with random weights, frozen as the config says."""
    tower = TOWERS[config.backend](config)
    norm = tower.final_norm() if config.train_final_norm else None
    if config.train_final_norm and norm is None:
        raise ValueError(f"train_final_norm: the {config.backend} model has no final norm")
    tower.freeze(config.train_last_blocks, norm)
    return tower.eval()


def pixel_statistics(config: KosmosVisionConfig) -> dict[str, list[float]]:
    """Return mean and deviation of the pixels that a published timm model reads; {} for CLIP's, the default."""
    if config.backend != "timm":
        return {}
    timm = needed("timm", "timm")
    published = timm.get_pretrained_cfg(config.model_config["model_name"], allow_unregistered=True)
    return {} if published is None else {"image_mean": list(published.mean), "image_std": list(published.std)}


class SpanEncoder(Encoder):
    """The bidirectional encoder of text spans: any BERT-like transformers model, rebuilt from its config."""

    def __init__(self, config: KosmosSpanEncoderConfig) -> None:
        super().__init__()
        self.encoder = from_description(config.model_config, "span_encoder_config", "bert")
        if hasattr(self.encoder, "pooler"):
            self.encoder.pooler = None
        self.width = self.encoder.config.hidden_size
        self.first_position = first_position(self.encoder.config)
        self.freeze(config.train_last_blocks)
        self.eval()

    def forward(
        self,
        input_ids_SL: Tensor,
        attention_mask_SL: Tensor | None = None,
        valid_N: Tensor | None = None,
        rows: SpanRows | None = None,
    ) -> Tensor:
        """Return the features of all spans' tokens end to end, (N, C); each span's first token is its BOS, dropped.

        Args:
            valid_N: flat indices of the valid tokens in the spans without their BOS, (S, L - 1) laid end to end, of
                inputs that were checked; found and checked here if they are not given.
            rows: the same spans in fewer rows, as ``lay_in_rows`` makes them; on a CPU they are made here.

        Raises:
            ValueError: an id outside the encoder's vocabulary, or a span longer than its positions.
        """
        if valid_N is None:
            self.check(input_ids_SL)
            rows = self.lay_in_rows(input_ids_SL, attention_mask_SL)
        if rows is not None:
            return self._read_rows(rows)
        with self.gradients():
            states = self.encoder(input_ids=input_ids_SL, attention_mask=attention_mask_SL).last_hidden_state
        read = states[:, 1:]
        if attention_mask_SL is None:
            return read.flatten(0, 1)
        return read[attention_mask_SL[:, 1:].bool()] if valid_N is None else read.flatten(0, 1).index_select(0, valid_N)

    def lay_in_rows(self, input_ids_SL: Tensor, attention_mask_SL: Tensor | None) -> SpanRows | None:
        """Lay spans on a CPU into fewer rows; None where this encoder cannot read them so, or it saves nothing."""
        known = self.first_position is not None and self.encoder.config._attn_implementation in ("sdpa", "eager")
        if not known or attention_mask_SL is None or attention_mask_SL.device.type != "cpu":
            return None
        return lay_in_rows(input_ids_SL, attention_mask_SL)

    def _read_rows(self, rows: SpanRows) -> Tensor:
        ids_RL, positions_RL, _ = rows.tokens
        mask_R1LL = rows.mask(next(self.encoder.parameters()).dtype)
        with self.gradients():
            states = self.encoder(
                input_ids=ids_RL, attention_mask=mask_R1LL, position_ids=positions_RL + self.first_position
            ).last_hidden_state
        return states.flatten(0, 1).index_select(0, rows.taken)

    def check(self, input_ids_SL: Tensor) -> None:
        """Refuse spans that the encoder does not read.

        Raises:
            ValueError: an id outside the encoder's vocabulary, or a span longer than its positions.
        """
        vocabulary = self.encoder.config.vocab_size
        limit = getattr(self.encoder.config, "max_position_embeddings", None)
        if limit is not None and input_ids_SL.shape[1] > limit:
            raise ValueError(f"span_input_ids are {input_ids_SL.shape[1]} long, but the span encoder reads {limit}")
        if input_ids_SL.numel() and not input_ids_SL.is_meta and (largest := int(input_ids_SL.max())) >= vocabulary:
            raise ValueError(f"span_input_ids hold id {largest}, but the span encoder's vocabulary is {vocabulary}")


def from_description(model_config: dict[str, Any] | None, where: str, example: str) -> nn.Module:
    """Return transformers' model of a config with its ``model_type``, with random weights.

    Args:
        model_config: the fields, as in a published ``config.json``.
        where: the field of ours that holds it, for the message.
        example: a ``model_type`` that would do.

    Raises:
        ValueError: transformers knows no such model.
    """
    from transformers import AutoModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    fields = dict(model_config or {})
    model_type = fields.pop("model_type", None)
    if model_type not in CONFIG_MAPPING or CONFIG_MAPPING[model_type] not in MODEL_MAPPING:
        raise ValueError(f"{where}.model_config: transformers knows no model_type {model_type!r}; try {example!r}")
    return AutoModel.from_config(CONFIG_MAPPING[model_type](**fields))


def check_pixels(pixel_values: Tensor, size: int) -> None:
    """Raise ValueError unless ``pixel_values`` is floating point of shape (I, 3, size, size)."""
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"pixel_values are {pixel_values.dtype}; the model takes normalised floats "
            "(the image processor's normalize() makes them)"
        )
    if tuple(pixel_values.shape[1:]) != (3, size, size):
        raise ValueError(
            f"pixel_values have shape {tuple(pixel_values.shape)}; the vision tower takes (images, 3, {size}, {size})"
        )


def _require(fields: dict[str, Any], *names: str) -> None:
    for name in names:
        if name not in fields:
            raise ValueError(f"vision_config.model_config lacks {name!r}; it has {sorted(fields)}")


def keep_initialisation(encoder: nn.Module) -> None:
    """Tell transformers that this foreign module initialises itself."""
    for module in encoder.modules():
        module._is_hf_initialized = True
