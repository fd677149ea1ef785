"""Configuration of the encoders that dock, and of the connectors between them and the decoder."""

# No `from __future__ import annotations` here: strict checks the types of fields, and skips those that are strings.
from typing import Any, Literal

from transformers.configuration_utils import PreTrainedConfig

from .checked_config import checked
from .limits import check_encoder, check_kinds

# Kinds of connectors that make num_queries features, however many they read.
QUERYING = ("xconnector", "resampler")
VIT_L_14 = {"image_size": 224, "layers": 24, "width": 1024, "patch_size": 14}


@checked
class KosmosVisionConfig(PreTrainedConfig):
    """The vision tower, described well enough to rebuild it offline.

    Attributes:
        backend: ``open_clip`` | ``timm`` | ``clip`` (transformers' CLIPVisionModel).
        model_config: open_clip: its model JSON (``embed_dim``, ``quick_gelu``, ``vision_cfg``); timm: the arguments of
            ``timm.create_model`` with ``model_name``; clip: the fields of ``CLIPVisionConfig``.
        image_size: pixels a side; None reads it from ``model_config``.
        l2_normalize: divide every token's feature by its L2 norm after the final norm (KOSMOS-2's released code).
        train_last_blocks: how many of the last blocks learn; the rest is frozen. KOSMOS-1 trains one.
        train_final_norm: whether the final norm learns along with the last blocks (the paper does not say).
    """

    model_type = "kosmos_vision"
    base_config_key = "vision_config"

    backend: Literal["open_clip", "timm", "clip"] = "open_clip"
    model_config: dict[str, Any] | None = None
    image_size: int | None = None
    l2_normalize: bool = True
    train_last_blocks: int = 0
    train_final_norm: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if self.model_config is None:
            self.model_config = {"embed_dim": 768, "quick_gelu": True, "vision_cfg": dict(VIT_L_14)}
            if self.backend != "open_clip":
                raise ValueError(f"vision_config with backend {self.backend!r} needs a model_config")
        check_encoder(self.backend, self.model_config)
        said = self._said_size()
        if self.image_size is None:
            self.image_size = said or 224
        elif said not in (None, self.image_size):
            raise ValueError(
                f"vision_config.image_size is {self.image_size}, but its model_config says {said}; give both the same, "
                "or image_size: null"
            )
        super().__post_init__(**kwargs)

    def _said_size(self) -> int | None:
        """Pixels a side as the encoder's own description has them; None: it does not say."""
        fields = self.model_config.get("vision_cfg", self.model_config) if self.model_config else {}
        size = fields.get("image_size") or fields.get("img_size")
        return int(size[0] if isinstance(size, (list, tuple)) else size) if size else None


@checked
class KosmosConnectorConfig(PreTrainedConfig):
    """The map from an encoder's features to the decoder's embedding space, see connectors.py.

    Attributes:
        kind: ``linear`` | ``mlp`` | ``ffn3`` keep one output a feature; ``xconnector`` (KOSMOS-2) and ``resampler``
            (Flamingo's Perceiver) turn any number of features into ``num_queries`` outputs.
        num_heads: attention heads of xconnector (None: those of the decoder) or of the resampler (None: 8).
        num_queries: outputs of xconnector and resampler, the places that an image takes.
        depth, head_dim: layers of the resampler and the width of its heads.
        hidden_act: activation of the kinds that have one.
        num_frames: most frames of a video, each of which gets an embedding of its time; None: not for videos.
    """

    model_type = "kosmos_connector"
    base_config_key = "connector_config"

    kind: Literal["linear", "mlp", "ffn3", "xconnector", "resampler"] = "xconnector"
    num_queries: int = 64
    num_heads: int | None = None
    depth: int = 6
    head_dim: int = 64
    num_frames: int | None = None
    hidden_act: str = "gelu"


@checked
class KosmosEntityConfig(PreTrainedConfig):
    """The tables of entities, see entities.py.

    Attributes:
        kinds: number of ids of each kind: ``{"user": 1000, "item": 200}``; those of the processor.
        hidden_size: width of a table.
        unknown_rate: share of the ids that training takes for unknown ones.
        rating: whether a head predicts ratings at the places of entities (PETER).
    """

    model_type = "kosmos_entity"
    base_config_key = "entity_config"

    kinds: dict[str, Any] | None = None
    hidden_size: int = 64
    unknown_rate: float | int = 0.1
    rating: bool = False

    def validate_architecture(self) -> None:
        """Part of ``@strict`` validation: refuse kinds without ids and rates that are none."""
        check_kinds(self.kinds if self.kinds is not None else {"entity": 1})
        if not 0 <= self.unknown_rate < 1:
            raise ValueError(f"unknown_rate is {self.unknown_rate}; it must lie from 0 to below 1")


@checked
class KosmosAudioConfig(PreTrainedConfig):
    """The encoder of sounds: any audio encoder of transformers (Whisper, AST, wav2vec 2.0 …).

    Attributes:
        model_config: the encoder's own config as a dict with its ``model_type`` (``whisper``,
            ``audio-spectrogram-transformer``, ``wav2vec2`` …).
        input_shape: what its feature extractor makes of a sound: mel bins and frames, frames and mel bins, or samples.
            None: read from ``model_config``, where that says it.
        train_last_blocks: how many of the last layers learn; the rest is frozen.
    """

    model_type = "kosmos_audio"
    base_config_key = "audio_config"

    model_config: dict[str, Any] | None = None
    input_shape: list[int] | tuple[int, ...] | None = None
    train_last_blocks: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        if self.model_config is not None:  # transformers makes empty ones, to compare with
            check_encoder(str(self.model_config.get("model_type")), self.model_config)
            if self.input_shape is None:
                self.input_shape = self._input_shape(self.model_config)
        super().__post_init__(**kwargs)

    @staticmethod
    def _input_shape(fields: dict[str, Any]) -> list[int]:
        """Whisper's two convolutions halve the frames; AST's config has what it reads."""
        kind = fields.get("model_type")
        if kind == "whisper":
            return [fields.get("num_mel_bins", 80), 2 * fields.get("max_source_positions", 1500)]
        if kind == "audio-spectrogram-transformer":
            return [fields.get("max_length", 1024), fields.get("num_mel_bins", 128)]
        raise ValueError(
            f"audio_config.input_shape is needed for a {kind}: the shape of what its feature extractor makes of a "
            "sound, for instance [480000], the samples of 30 s"
        )


@checked
class KosmosFusedConfig(PreTrainedConfig):
    """The encoder that reads an image and a text together, see fused.py.

    Without ``model_config`` it is a multiway transformer (BEiT-3, VLMo), by default of the sizes of BEiT-3 base.

    Attributes:
        model_config: config of a model of transformers as a dict with its ``model_type`` (``vilt``, ``flava``,
            ``bridgetower`` …); of the fields below only ``train_last_blocks`` is read then, the others follow from it.
        image_size, patch_size: pixels a side of the image (None: 224, or the model's own) and of a patch.
        max_source_positions: rows of the text's table of positions, of which fairseq leaves the first two empty.
        share_attention: one set of attention projections for image and text (VLMo, BEiT-3's figure) instead of two
            (BEiT-3's released code).
        train_last_blocks: how many of the last blocks learn; the rest is frozen.
    """

    model_type = "kosmos_fused"
    base_config_key = "fused_config"

    model_config: dict[str, Any] | None = None
    vocab_size: int = 64010
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int | None = None
    patch_size: int = 16
    max_source_positions: int = 1024
    layer_norm_eps: float = 1e-5
    share_attention: bool = False
    train_last_blocks: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        if self.model_config is not None:
            self._take(self.model_config)
        elif self.image_size is None:
            self.image_size = 224
        super().__post_init__(**kwargs)

    def _take(self, described: dict[str, Any]) -> None:
        """Read what the pictures and texts of a model of transformers are like out of its config."""
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        check_encoder(str(described.get("model_type")), described)
        kind = described.get("model_type")
        if kind not in CONFIG_MAPPING:
            raise ValueError(f"fused_config.model_config: transformers knows no model_type {kind!r}; try 'vilt'")
        whole: Any = CONFIG_MAPPING[kind](**{name: value for name, value in described.items() if name != "model_type"})
        text = whole.get_text_config()
        parts = [whole, *(getattr(whole, name, None) for name in ("vision_config", "image_config"))]
        size = next((part.image_size for part in parts if getattr(part, "image_size", None)), None)
        length = getattr(text, "max_position_embeddings", None)
        if size is None or length is None:
            raise ValueError(f"fused_config.model_config: a {kind} does not read an image with a text; try 'vilt'")
        size = size[0] if isinstance(size, (list, tuple)) else size
        if self.image_size not in (None, size):
            raise ValueError(f"fused_config.image_size is {self.image_size}, but its {kind} reads {size} pixels a side")
        self.image_size, self.vocab_size, self.max_source_positions = size, text.vocab_size, length + 2

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def max_text_length(self) -> int:
        """Most tokens of a text."""
        return self.max_source_positions - 2

    def validate_architecture(self) -> None:
        """Part of ``@strict`` validation: refuse sizes that do not fit together."""
        if self.model_config is not None:
            return
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.image_size < self.patch_size or self.max_source_positions < 3:
            raise ValueError(
                f"image_size {self.image_size} holds no patch of {self.patch_size}, or max_source_positions "
                f"{self.max_source_positions} no token (2 of them are empty)"
            )
