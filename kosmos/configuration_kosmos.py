"""Configuration of a Kosmos model: decoder, vision tower, connectors, and the optional encoder of text spans.

One config describes KOSMOS-1 (spans are images), KOSMOS-2 (the public weights) and MetaLM (spans are stretches of
text); ``presets/*.json`` holds the named ones. ``save_pretrained`` writes it as ``config.json``.

Differs from the papers: attention dropout is 0 in every preset (the fused attention kernels have none; the released
KOSMOS-2 code dropped it silently as well).
"""

# No `from __future__ import annotations` here: strict checks the types of fields, and skips those that are strings.
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.errors import StrictDataclassError
from transformers.configuration_utils import PreTrainedConfig

from .checked_config import checked
from .encoder_configs import (
    QUERYING,
    KosmosAudioConfig,
    KosmosConnectorConfig,
    KosmosEntityConfig,
    KosmosFusedConfig,
    KosmosVisionConfig,
)
from .limits import check_encoder
from .read_json import parse_json
from .suggest import suggest

PRESETS = Path(__file__).parent / "presets"
# Modalities beside images and text spans.
FURTHER = ("audio", "video", "fused")
# Parts that every model has.
REQUIRED = ("text_config", "connector_config")


@checked
class KosmosTextConfig(PreTrainedConfig):
    """The causal decoder: MAGNETO sub-LN blocks with a switch for positions.

    Attributes:
        vocab_size: rows of the embedding, at least the tokenizer's; a run takes the tokenizer's.
        hidden_size: width d of the decoder.
        intermediate_size: inner width of the feed-forward part.
        num_hidden_layers: blocks.
        num_attention_heads: heads; they divide ``hidden_size``.
        hidden_act: activation of the feed-forward part, by transformers' name.
        dropout: behind embedding, attention and feed-forward part, in training.
        attention_dropout, activation_dropout: of attention weights; behind the activation.
        layer_norm_eps: ε of every layer norm.
        position_type: ``xpos`` (KOSMOS-1), ``rope`` (xPos without decay), ``sinusoidal`` (KOSMOS-2, MetaLM; counts
            from pad_token_id + 1 as fairseq does) or ``learned_2d`` (GLM's two tables).
        max_position_embeddings: training length; the size of the learned tables; xPos scales are centred on its half.
        scale_embedding: multiply text *and* image features by sqrt(hidden_size) (torchscale, KOSMOS-2).
        blockwise_causal_length: training length l for blockwise causal attention (xPos paper, section 3.3): outside
            training a query sees its own block of l/2 tokens and the one before it. None: ordinary attention.
        xpos_scale_base: tokens over which xPos decays by its factor (512 in the paper).
        routing_layers: layers, counted from 0, that attend to persona, context and what is written apart, see
            routing.py; None: none.
        routing_loss: weight of the loss of the classifier that predicts how much the persona counts there.
        sub_layer_norm: MAGNETO's norms before the output projections of attention and feed-forward part. False:
            ordinary pre-LN, as GPT-2, to compare with.
        initialization: ``magneto_paper`` | ``magneto_torchscale`` | ``normal``, see initialization.py.
        initializer_range: standard deviation of ``normal``.
        use_cache: keep keys and values while writing.
        tie_word_embeddings: the output matrix is the embedding; the whole model's value decides.
        pad_token_id, bos_token_id, eos_token_id: as the tokenizer has them.
    """

    model_type = "kosmos_text"
    base_config_key = "text_config"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 64007
    hidden_size: int = 2048
    intermediate_size: int = 8192
    num_hidden_layers: int = 24
    num_attention_heads: int = 32
    hidden_act: str = "gelu"
    dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    activation_dropout: float | int = 0.0
    layer_norm_eps: float = 1e-5
    scale_embedding: bool = True
    position_type: Literal["xpos", "rope", "sinusoidal", "learned_2d"] = "xpos"
    max_position_embeddings: int = 2048
    xpos_scale_base: int = 512
    blockwise_causal_length: int | None = None
    routing_layers: list[int] | None = None
    routing_loss: float | int = 1.0
    sub_layer_norm: bool = True
    initialization: Literal["magneto_paper", "magneto_torchscale", "normal"] = "magneto_paper"
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2

    def validate_architecture(self) -> None:
        """Part of ``@strict`` validation: refuse sizes that do not fit together."""
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        head_dim = self.hidden_size // self.num_attention_heads
        if self.position_type in ("xpos", "rope") and head_dim % 2:
            raise ValueError(f"position_type {self.position_type!r} rotates pairs: head width {head_dim} must be even")
        if self.position_type == "sinusoidal" and (self.hidden_size % 2 or self.hidden_size < 4):
            raise ValueError(f"sinusoidal positions need an even hidden_size of at least 4, got {self.hidden_size}")
        length = self.blockwise_causal_length
        if length is not None and (length < 2 or length % 2):
            raise ValueError(f"blockwise_causal_length {length} must be even: a block is half of it")
        self._check_routing()

    def _check_routing(self) -> None:
        layers = self.routing_layers
        if layers is None:
            return
        if not layers or len(set(layers)) < len(layers) or not all(0 <= one < self.num_hidden_layers for one in layers):
            raise ValueError(
                f"routing_layers {layers}: name layers from 0 to {self.num_hidden_layers - 1}, each once, or leave "
                "routing_layers out"
            )
        if self.blockwise_causal_length is not None:
            raise ValueError("routing_layers do not go with blockwise_causal_length; leave one of them out")
        if self.routing_loss < 0:
            raise ValueError(f"routing_loss {self.routing_loss}: the weight of a loss is at least 0")


@checked
class KosmosSpanEncoderConfig(PreTrainedConfig):
    """The bidirectional encoder that reads text spans (MetaLM): any BERT-like transformers model.

    Attributes:
        model_config: the encoder's own config as a dict with its ``model_type`` (``bert``, ``roberta``, …).
        train_last_blocks: how many of the last layers learn (MetaLM trains two); the rest is frozen.
    """

    model_type = "kosmos_span_encoder"
    base_config_key = "span_encoder_config"

    model_config: dict[str, Any] | None = None
    train_last_blocks: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        if self.model_config is not None:
            check_encoder(str(self.model_config.get("model_type")), self.model_config)
        super().__post_init__(**kwargs)


def text_config(fields: dict[str, Any]) -> PreTrainedConfig:
    """Return the decoder's config: ours, or that of the language model of transformers which ``model_type`` names.

    Raises:
        ValueError: transformers does not know the ``model_type``, or refuses its fields.
    """
    kind = fields.get("model_type", KosmosTextConfig.model_type)
    if kind == KosmosTextConfig.model_type:
        return KosmosTextConfig(**fields)
    if fields.get("routing_layers"):
        raise ValueError(f"text_config of type {kind} has routing_layers, which only our own decoder has (kosmos_text)")
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if kind not in CONFIG_MAPPING:
        raise ValueError(f"text_config: transformers knows no model_type {kind!r}; try llama or qwen3")
    try:
        return CONFIG_MAPPING[kind](**{name: value for name, value in fields.items() if name != "model_type"})
    except (StrictDataclassError, TypeError) as error:
        raise ValueError(f"text_config of type {kind}: {' '.join(str(error).split())}") from error


@checked
class KosmosConfig(PreTrainedConfig):
    """A whole model. ``vision_config=None`` makes a text-only one, ``span_encoder_config`` adds text spans.

    Each further modality has a config of its encoder, one of its connector (which has queries), and a placeholder:
    ``audio_config``, ``audio_connector_config`` and ``audio_token_id`` for sounds. The frames of a video go through the
    vision tower, so videos have ``video_connector_config`` and ``video_token_id`` only. ``fused_config`` reads an image
    with a text.

    Attributes:
        text_config: the decoder, ours by default; with the ``model_type`` of a causal language model of transformers
            (``llama``, ``qwen3`` …) and its fields, that one.
        vision_config: the vision tower; None: a model of text.
        connector_config, span_connector_config: from features of images, and of spans, to the decoder's width.
        span_encoder_config: the encoder of text spans; None: there is none.
        audio_config: the encoder of sounds; None: there is none.
        audio_connector_config, video_connector_config: from features of sounds, and of the frames of videos (which the
            vision tower reads), to the decoder's width; with queries.
        fused_config: the encoder of images with texts; None: there is none.
        fused_connector_config: from its states to the decoder's width; with queries.
        audio_token_id, video_token_id, fused_token_id: the ids of their placeholders.
        entity_config: the tables of entities (people, products); None: there are none.
        entity_connector_config: from a row of a table to the decoder's width.
        image_token_id: the id of the image placeholder; may lie outside the vocabulary, it is replaced before lookup.
        boi_token_id, eoi_token_id: the tokens around an image.
        span_token_id: the id of the text-span placeholder.
        coupling: how images come to the decoder: ``input``, their features stand in its rows; ``cross_attention``
            (Flamingo), gated layers attend to the image before each token, and an image takes one position.
        cross_attention_every: such a layer stands before every n-th layer of the decoder.
        cross_attention_heads, cross_attention_head_dim: their attention heads (Flamingo: 8 of width 64).
        entity_token_id: the id of the placeholder of an entity; with an ``entity_config`` by default the first id
            behind the vocabulary.
        num_image_tokens: decoder positions an image takes; None: ``connector_config.num_queries``, 1 where it is
            attended to.
        num_span_tokens: decoder positions a text span takes; None: ``num_queries`` of a span connector that has queries
            (``xconnector``, ``resampler``), otherwise one for each token of the span.
        tie_word_embeddings: the output matrix is the decoder's embedding.
    """

    model_type = "kosmos"
    # Read by every version of transformers; the table of 5.21 that also builds the parts, 5.16 to 5.20 do not have.
    sub_configs = {
        "text_config": KosmosTextConfig,
        "vision_config": KosmosVisionConfig,
        "connector_config": KosmosConnectorConfig,
        "span_encoder_config": KosmosSpanEncoderConfig,
        "span_connector_config": KosmosConnectorConfig,
        "entity_config": KosmosEntityConfig,
        "entity_connector_config": KosmosConnectorConfig,
        "audio_config": KosmosAudioConfig,
        "audio_connector_config": KosmosConnectorConfig,
        "video_connector_config": KosmosConnectorConfig,
        "fused_config": KosmosFusedConfig,
        "fused_connector_config": KosmosConnectorConfig,
    }

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    connector_config: dict | PreTrainedConfig | None = None
    span_encoder_config: dict | PreTrainedConfig | None = None
    span_connector_config: dict | PreTrainedConfig | None = None
    entity_config: dict | PreTrainedConfig | None = None
    entity_connector_config: dict | PreTrainedConfig | None = None
    audio_config: dict | PreTrainedConfig | None = None
    audio_connector_config: dict | PreTrainedConfig | None = None
    audio_token_id: int | None = None
    video_connector_config: dict | PreTrainedConfig | None = None
    video_token_id: int | None = None
    fused_config: dict | PreTrainedConfig | None = None
    fused_connector_config: dict | PreTrainedConfig | None = None
    fused_token_id: int | None = None
    image_token_id: int | None = 64007
    boi_token_id: int | None = 64003
    eoi_token_id: int | None = 64004
    span_token_id: int | None = None
    entity_token_id: int | None = None
    coupling: Literal["input", "cross_attention"] = "input"
    cross_attention_every: int = 4
    cross_attention_heads: int = 8
    cross_attention_head_dim: int = 64
    num_image_tokens: int | None = None
    num_span_tokens: int | None = None
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if self.span_encoder_config is not None and self.span_connector_config is None:
            self.span_connector_config = {"kind": "linear"}
        if self.entity_config is not None and self.entity_connector_config is None:
            self.entity_connector_config = {"kind": "mlp"}
        for name in ("audio", "fused"):
            if getattr(self, f"{name}_config") is not None and getattr(self, f"{name}_connector_config") is None:
                setattr(self, f"{name}_connector_config", {})
        for name, part in self.sub_configs.items():
            given = getattr(self, name)
            if isinstance(given, dict) or (given is None and name in REQUIRED):
                made = text_config(given or {}) if name == "text_config" else part(**(given or {}))
                setattr(self, name, made)
        if self.text_config.model_type != KosmosTextConfig.model_type:  # ours is tied or not as the whole model says
            self.tie_word_embeddings = self.text_config.tie_word_embeddings
        if self.video_connector_config is not None and self.video_connector_config.num_frames is None:
            self.video_connector_config.num_frames = 8  # Flamingo trains with as many
        super().__post_init__(**kwargs)
        if not hasattr(self, "auto_map"):  # TRL reads it of every model that is not transformers' own
            self.auto_map: dict[str, str] = {}
        if self.num_image_tokens is None:
            self.num_image_tokens = 1 if self.coupling == "cross_attention" else self.connector_config.num_queries
        if self.entity_config is not None and self.entity_token_id is None:
            self.entity_token_id = self.text_config.vocab_size
        if self.num_span_tokens is None and self._span_queries() is not None:
            self.num_span_tokens = self._span_queries()

    @classmethod
    def default_config_fields(cls) -> dict[str, Any]:
        """As in transformers, which leaves out of config.json what parts named here share with its defaults."""
        return {**super().default_config_fields(), **{name: {} for name in cls.sub_configs}}

    def to_dict(self) -> dict[str, Any]:
        """As in transformers; a model that brings no code says nothing of it."""
        fields = super().to_dict()
        if not fields.get("auto_map", True):
            del fields["auto_map"]
        return fields

    def places_of(self, modality: str) -> int:
        """Return the places that one input of a modality takes, whose connector has queries."""
        return getattr(self, f"{modality}_connector_config").num_queries

    def _span_queries(self) -> int | None:
        """Return how many features the span connector makes of a span; None: one for each token."""
        connector = self.span_connector_config
        return connector.num_queries if connector is not None and connector.kind in QUERYING else None

    def validate_architecture(self) -> None:
        """Part of ``@strict`` validation: placeholders must exist and differ."""
        if self.vision_config is not None and self.image_token_id is None:
            raise ValueError("a model with a vision_config needs image_token_id, the id of the image placeholder")
        if self.span_encoder_config is not None and self.span_token_id is None:
            raise ValueError("a model with a span_encoder_config needs span_token_id, the id of the span placeholder")
        self._check_coupling()
        self._validate_entities()
        self._check_further()
        if self.num_span_tokens != self._span_queries():
            kind = getattr(self.span_connector_config, "kind", None)
            raise ValueError(
                f"num_span_tokens is {self.num_span_tokens}, but a span_connector_config of kind {kind!r} makes "
                f"{self._span_queries() or 'one feature a token'}; leave num_span_tokens out, or set num_queries"
            )

    @property
    def is_routed(self) -> bool:
        """Whether layers of the decoder have attention routing."""
        return bool(getattr(self.text_config, "routing_layers", None))

    def cross_layers(self) -> list[int]:
        """Return the decoder's layers that have cross-attention before them; none where features stand in the rows."""
        if self.coupling == "input":
            return []
        every = self.cross_attention_every
        return list(range(every - 1, self.get_text_config().num_hidden_layers, every))

    def _check_coupling(self) -> None:
        if self.coupling == "input":
            return
        size = self.text_config.vocab_size
        if self.vision_config is None:
            raise ValueError("coupling: cross_attention attends to images, but there is no vision_config")
        if self.num_image_tokens != 1:
            raise ValueError(
                f"coupling: cross_attention takes one position an image, num_image_tokens is {self.num_image_tokens}; "
                "make the processor with num_image_tokens=1 (the connector's num_queries are what is attended to)"
            )
        if self.image_token_id is not None and self.image_token_id >= size:
            raise ValueError(
                f"coupling: cross_attention reads the placeholder's own embedding, but image_token_id "
                f"{self.image_token_id} lies outside the vocabulary of {size}"
            )
        if not self.cross_layers():
            raise ValueError(f"cross_attention_every is {self.cross_attention_every}, more than the decoder's layers")

    def _validate_entities(self) -> None:
        if self.entity_config is None:
            return
        if self.entity_token_id in (self.image_token_id, self.span_token_id):
            raise ValueError(f"entity_token_id is {self.entity_token_id}, as another placeholder's")
        if self.entity_connector_config.kind in QUERYING:
            raise ValueError(
                f"entity_connector_config.kind is {self.entity_connector_config.kind!r}, but an entity has one "
                "feature; take linear, mlp or ffn3"
            )

    def _check_further(self) -> None:
        """Every encoder has a placeholder of its own, and a further modality a connector with queries."""
        for name in FURTHER:
            connector = getattr(self, f"{name}_connector_config")
            if connector is None:
                continue
            if getattr(self, f"{name}_token_id") is None:
                raise ValueError(f"a model that reads {name} needs {name}_token_id, the id of its placeholder")
            if connector.kind not in QUERYING:
                raise ValueError(
                    f"{name}_connector_config.kind is {connector.kind!r}: an encoder of {name} makes too many features "
                    f"for the decoder; choose {' or '.join(QUERYING)}"
                )
        if self.video_connector_config is not None and self.vision_config is None:
            raise ValueError("a model that reads video needs a vision_config: its tower reads the frames")
        tokens: dict[int, str] = {}
        for field in ("image_token_id", "span_token_id", "entity_token_id", *(f"{name}_token_id" for name in FURTHER)):
            token = getattr(self, field)
            if token is not None and tokens.setdefault(token, field) != field:
                raise ValueError(f"{tokens[token]} and {field} are both {token}")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "KosmosConfig":
        """Return a named preset (``presets/NAME.json``); ``changes`` replace its top-level fields."""
        path = PRESETS / f"{name}.json"
        if not path.is_file():
            names = sorted(file.stem for file in PRESETS.glob("*.json"))
            raise ValueError(f"unknown preset {name!r}; {suggest(name, names, 'there are')}")
        return cls(**{**parse_json(path.read_bytes()), **changes})
